"""The command that trains: ``xgfm train settings.yaml``.

In: a YAML file of settings. Out: the finished task in its folder, scores on standard output, an exit code.
"""

from __future__ import annotations

from typing import Annotated

import typer

from xgfm.cli.base import app
from xgfm.cli.jobs import workers_for
from xgfm.cli.words import busy, pairs
from xgfm.errors import XgfmError


@app.command()
def train(
    settings: Annotated[str, typer.Argument(help="YAML file of settings.", metavar="SETTINGS", show_default=False)],
    ranks: Annotated[int, typer.Option(help="Processes that train together, on workers of --cluster.")] = 1,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="local, cuda, slurm, pbs, lsf, or a Dask scheduler's address, tcp://...; by default this process.",
            metavar="KIND",
        ),
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Of a worker, 16GB.", metavar="SIZE")] = None,
    walltime: Annotated[str | None, typer.Option(help="Of a job in the queue, 04:00:00.", metavar="TIME")] = None,
    queue: Annotated[str | None, typer.Option(help="Partition or queue.", metavar="NAME")] = None,
    account: Annotated[str | None, typer.Option(help="What is billed.", metavar="NAME")] = None,
    gpus: Annotated[int | None, typer.Option(help="Of a worker in the queue.")] = None,
) -> None:
    """Fine-tune a task on chips, as a file of settings says.

    The same command goes on with a run that was interrupted; Ctrl-C leaves a checkpoint. The finished task lies in
    FOLDER/task, where xgfm predict --task finds it.
    """
    from xgfm.train.fit import run
    from xgfm.train.settings import TrainSettings

    record = TrainSettings.read(settings)
    if cluster is None and ranks > 1:
        raise XgfmError(f"--ranks {ranks}: of which workers? Give --cluster")
    workers = None if cluster is None else ranks
    with (
        workers_for(cluster, workers=workers, memory=memory, walltime=walltime, queue=queue, account=account,
                    gpus=gpus) as client,
        busy(f"training; {record.folder}/history.csv says how far it is"),
    ):  # fmt: skip
        result = run(record, client=client, ranks=ranks)
    typer.echo(f"best weights: step {result.step}")
    pairs([(name, _shown(score)) for name, score in result.metrics["scores"].items()])
    typer.echo(f"task: {result.task}")


def _shown(score: dict[str, float | None]) -> str:
    value, low, high = (score.get(name) for name in ("value", "low", "high"))
    text = "-" if value is None else f"{value:.4g}"
    return text if low is None or high is None else f"{text} [{low:.4g}, {high:.4g}]"
