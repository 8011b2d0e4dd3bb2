"""Training as its own program, one process or many: ``torchrun --nproc-per-node 4 -m xgfm.train settings.yaml``.

In: a file of settings, and what torchrun or srun says of this process. Out: the folder that the settings name; exit
code 0 where training is over, else 1 with one line that says why.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from xgfm.errors import XgfmError


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as a file of settings says, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m xgfm.train",
        description="Train as a file of settings says. Started by torchrun or srun, each process is one of several.",
    )
    parser.add_argument("settings", help="YAML file")
    path = parser.parse_args(arguments).settings
    try:
        _train(path)
    except XgfmError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _train(path: str) -> None:
    from xgfm.train.fit import run, unguarded
    from xgfm.train.loop.trainer import train
    from xgfm.train.ranks.ranks import rendezvous
    from xgfm.train.settings import TrainSettings

    settings, place = TrainSettings.read(path), rendezvous()
    if place is not None and place.rank > 0:
        train(settings)
        return
    # Joins the others to train, and writes the finished task when they have left.
    result = (run if place is None else unguarded)(settings)
    print(f"task: {result.task}, best weights: step {result.step}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
