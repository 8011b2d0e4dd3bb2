"""Train in a process of its own: ``python train_process.py SETTINGS``. Says a line for each thing that it begins.

Whoever reads the lines can kill it in the middle of any of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from xgfm.train.loop import checkpoints
from xgfm.train.loop.checkpoints import Checkpoints
from xgfm.train.loop.stepping import Stepper
from xgfm.train.loop.trainer import train
from xgfm.train.settings import TrainSettings


def saying(holder: Any, name: str, line: Callable[..., str]) -> None:
    """Let a function say a line before it does its work."""
    work = getattr(holder, name)

    def wrapper(*args: Any, **options: Any) -> Any:
        print(line(*args, **options), flush=True)
        return work(*args, **options)

    setattr(holder, name, wrapper)


def main(path: str) -> None:
    saying(Stepper, "take", lambda self, step, *_: f"step {step}")
    saying(Checkpoints, "_write", lambda self, name, *_: f"write {name}")
    saying(checkpoints, "_digest", lambda path: f"digest {path.name}")
    saying(checkpoints, "replace_file", lambda path, data: f"replace {path.name}")
    saying(Checkpoints, "_delete_all_but", lambda self, kept: "delete")
    result = train(TrainSettings.read(path))
    print("finished", result.step, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
