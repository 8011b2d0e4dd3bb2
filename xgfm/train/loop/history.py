"""What happened in a run, step by step, as a CSV file that an interruption does not change.

In: rows of numbers. Out: history.csv, and on going on the same file cut where the checkpoint was made, so that it reads
as if nothing had happened. Nothing is lazy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import pandas as pd

from xgfm.errors import WriteError

HISTORY = "history.csv"
TRAINING = ("epoch", "loss", "lr", "gradient_norm", "seconds", "samples_per_second", "data_wait")
VALIDATION = ("val_loss", "val_accuracy", "val_mean_iou", "val_rmse", "val_mae")
COLUMNS = ("step", *TRAINING, *VALIDATION)
"""``seconds`` and ``samples_per_second`` are of a step without validation, ``data_wait`` the share of it in which there
was nothing to compute; validation columns are empty but where the split was run through."""


class History:
    """The file, while a run writes it.

    Parameters
    ----------
    folder
        Of the run.
    size
        Bytes of the file that belong to the checkpoint that is gone on from; 0 begins anew.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.path = folder / HISTORY
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            if not self.path.exists() or self.path.stat().st_size < size:
                size = 0
            self.file: BinaryIO = self.path.open("r+b" if self.path.exists() else "w+b")
            self.file.truncate(size)
            self.file.seek(size)
            if size == 0:
                self.file.write((",".join(COLUMNS) + "\n").encode())

    def add(self, row: Mapping[str, float]) -> None:
        """Write a row; numbers that are not in it stay empty."""
        cells = ["" if row.get(name) is None else repr(row[name]) for name in COLUMNS]
        with self._writing():
            self.file.write((",".join(cells) + "\n").encode())

    def sync(self) -> int:
        """See all rows on the disk; return how many bytes they are."""
        with self._writing():
            self.file.flush()
            os.fsync(self.file.fileno())
            return self.file.tell()

    def close(self) -> None:
        """Close the file."""
        with self._writing():
            self.file.close()

    def _writing(self) -> _Writing:
        return _Writing(self.path)


class _Writing:
    """Tell of a disk that takes no more in the project's own words."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise WriteError(
                f"{self.path} cannot be written ({error.strerror or error}). Make room, and the same call goes on from "
                "the last checkpoint"
            ) from error


def read_history(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """Return the history of a run, by step; numbers that were not there are NaN.

    Parameters
    ----------
    folder
        Of the run.
    """
    return pd.read_csv(Path(folder) / HISTORY, index_col="step", float_precision="round_trip")
