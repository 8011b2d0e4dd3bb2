"""Other places that follow a run: TensorBoard and MLflow.

In: rows of the history. Out: the same numbers there. Each package is imported when it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from xgfm.errors import MissingExtraError
from xgfm.train.loop.history import History
from xgfm.train.settings import TrainSettings

_RUN = "mlflow.txt"


class Logger(Protocol):
    """Takes numbers of a step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take finite numbers."""

    def close(self) -> None:
        """Write what is left."""


def loggers(settings: TrainSettings, folder: Path, step: int) -> list[Logger]:
    """Open what the settings ask for; ``step`` is the first that follows."""
    made: dict[str, Callable[[TrainSettings, Path, int], Logger]]
    made = {"tensorboard": _TensorBoard, "mlflow": _Mlflow}
    return [made[name](settings, folder, step) for name in dict.fromkeys(settings.log) if name in made]


class Records:
    """The history of a run, and every other place that follows it.

    Parameters
    ----------
    settings, folder
        Of the run.
    size
        Bytes of the history that belong to the checkpoint that is gone on from.
    step
        Steps that were taken before.
    """

    def __init__(self, settings: TrainSettings, folder: Path, size: int, step: int) -> None:
        self.history = History(folder, size)
        self.loggers = loggers(settings, folder, step + 1)

    def add(self, row: Mapping[str, float]) -> None:
        """Take a row of the history."""
        self.history.add(row)
        values = {name: float(value) for name, value in row.items() if name != "step" and math.isfinite(value)}
        for logger in self.loggers:
            logger.log(int(row["step"]), values)

    def sync(self) -> int:
        """See the history on the disk; return how many bytes it is."""
        return self.history.sync()

    def close(self) -> None:
        """Close them all."""
        self.history.close()
        for logger in self.loggers:
            logger.close()


class _TensorBoard:
    """Event files in ``folder/tensorboard``; steps that are taken again replace those before."""

    def __init__(self, settings: TrainSettings, folder: Path, step: int) -> None:  # noqa: ARG002 - as of the others
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "tensorboard", "log='tensorboard'") from error
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Mlflow:
    """A run of MLflow, at the server that its own environment variables name; the same one when training goes on."""

    def __init__(self, settings: TrainSettings, folder: Path, step: int) -> None:
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise MissingExtraError("mlflow", "mlflow", "log='mlflow'") from error
        self.client: Any = MlflowClient()
        note = folder / _RUN
        if step > 1 and note.exists():
            self.run = note.read_text(encoding="utf-8").strip()
            return
        named = self.client.get_experiment_by_name("xgfm")
        experiment = self.client.create_experiment("xgfm") if named is None else named.experiment_id
        self.run = self.client.create_run(experiment, run_name=settings.task.name).info.run_id
        note.write_text(self.run, encoding="utf-8")
        for name, value in settings.numbers().items():
            self.client.log_param(self.run, name, str(value)[:500])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run, name, value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run)
