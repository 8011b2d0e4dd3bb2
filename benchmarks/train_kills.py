"""Kill training at random moments; compare its loss curve and its weights with those of a run that nobody touched.

The run is a process of its own, which says what it is about to do: take a step, write a checkpoint, digest it, replace
the list of checkpoints, delete what is too many. It is killed (SIGKILL) on one of these lines, drawn by a seed. After
each kill the checkpoints are read by their digests, and the run goes on in a new process. The last line is JSON.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from harness import report

from xgfm.models.spec import to_json
from xgfm.train.loop.checkpoints import Checkpoints
from xgfm.train.loop.history import COLUMNS, read_history
from xgfm.train.loop.trainer import CHECKPOINTS
from xgfm.train.settings import TrainSettings

SAME = [name for name in COLUMNS if name not in ("step", "seconds", "samples_per_second", "data_wait")]
"""Columns of the history that do not measure the machine."""
CHILD = Path(__file__).resolve().parents[1] / "tests" / "train_process.py"


def child(settings: TrainSettings, stop_at: int | None) -> tuple[str, str]:
    """Run a process until it ends, or has said so many lines; return what it was doing and what it said to the end."""
    path = Path(f"{settings.folder}.yaml")
    settings.write(path)
    command = [sys.executable, str(CHILD), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = ""
        for number, said in enumerate(process.stdout):
            line = said.strip()
            if number == stop_at:
                process.send_signal(signal.SIGKILL)
                break
        errors = process.stderr.read()
    if stop_at is None and process.returncode:
        raise RuntimeError(f"the run ended with {process.returncode}: {errors}")
    return line, errors


def state(settings: TrainSettings) -> dict[str, Any]:
    """Return the last checkpoint, read by its digest; a damaged one is an error here."""
    checkpoints = Checkpoints(Path(settings.folder) / CHECKPOINTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved = checkpoints.last()
    return {} if saved is None else checkpoints.load(saved)


def rounds(settings: TrainSettings, *, kills: int, seed: int) -> dict[str, Any]:
    """Train once untouched and once with kills.

    Parameters
    ----------
    settings
        Of the run; its folder is where both runs go, each into its own.
    kills
        How often it is killed.
    seed
        Draws the moments.

    Returns
    -------
    dict
        ``kills``, ``at`` (what was going on, and how often), ``torn`` checkpoints, whether ``curves`` and ``weights``
        are equal to the last bit.
    """
    folder = Path(settings.folder)
    folder.mkdir(parents=True, exist_ok=True)
    untouched = settings.model_copy(update={"folder": str(folder / "untouched")})
    killed = settings.model_copy(update={"folder": str(folder / "killed")})
    child(untouched, None)
    rng, at, torn = random.Random(seed), Counter[str](), 0
    moments = [rng.randrange(30) for _ in range(kills)]
    for moment in moments:
        line, _ = child(killed, moment)
        at[line.split()[0] if line else "start"] += 1
        try:
            state(killed)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            torn += 1
            print(f"torn after {line!r}: {error}", flush=True)
        print(f"killed at {line!r}", flush=True)
    child(killed, None)
    one, other = state(untouched), state(killed)
    return {
        "kills": kills,
        "at": dict(at),
        "torn": torn,
        "curves": read_history(untouched.folder)[SAME].equals(read_history(killed.folder)[SAME]),
        "weights": all(torch.equal(value, other["module"][name]) for name, value in one["module"].items()),
        "steps": len(read_history(killed.folder)),
    }


def main() -> None:
    """Read the options, make chips, kill."""
    sys.path.insert(0, str(CHILD.parent))  # what tests share
    write_small_chips = import_module("field_chips").write_small_chips

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chips = write_small_chips(Path(folder) / "chips.zarr").path
        found = rounds(run_of(chips, folder, kills=options.kills), kills=options.kills, seed=options.seed)
    report("train_kills", [found])


def run_of(chips: str, folder: str, *, kills: int) -> TrainSettings:
    """Return settings of a run that is long enough to be killed so often, with dropout and batch norm in its model."""
    from small import model, task

    record = task(model=model(frames=2), frames=2)
    return TrainSettings(
        chips=chips,
        folder=folder,
        base={"kind": "task", "spec": to_json(record)},
        steps=max(10 * kills, 40),
        every=3,
        batch_size=4,
        loss={"cross_entropy": 1.0, "dice": 0.5},
        precision="fp32",
        device="cpu",
    )


if __name__ == "__main__":
    main()
