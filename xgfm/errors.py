"""What xgfm raises. Each message says what was given, what was expected, and the argument that mends it."""

from __future__ import annotations


class XgfmError(ValueError):
    """Base of every error that xgfm raises on purpose."""


class CubeError(XgfmError):
    """The cube's dimensions, dtype or coordinates are not those of a ``(time, band, y, x)`` cube."""


class BandError(CubeError):
    """A band is missing, repeated, in the wrong place or not the one the model was trained on."""


class UnitsError(CubeError):
    """The pixel values are not in the units that were declared or that the model takes."""


class GridError(CubeError):
    """No CRS, a wrong CRS, the wrong pixel size, or coordinates that are not a regular north-up grid."""


class FramesError(CubeError):
    """Too few or too many time steps, or time steps out of order."""


class SearchError(XgfmError):
    """A catalogue cannot be used or a search found nothing."""


class ItemError(XgfmError):
    """A STAC item lacks what a cube needs: an asset, a date, a tile, a grid."""


class ReadError(XgfmError):
    """An asset could not be read; the message holds item and asset, never a credential."""


class TaskError(XgfmError):
    """No such task or model, or a task that does not fit the call."""


class CheckpointError(XgfmError):
    """A weights file that is corrupt, hostile, of another digest or of another architecture."""


class WriteError(XgfmError):
    """A result could not be written; the message says what is left on disk."""


class StoreFull(WriteError):  # noqa: N818 - what the store is
    """A store that takes no more: no further block can be written."""


class JobError(XgfmError):
    """A job's record or plan that cannot be used, or that does not fit what is there."""


class Taken(XgfmError):  # noqa: N818 - what the job is
    """Another process runs this job; the message says which, since when, and what to do."""


class LabelError(XgfmError):
    """Labels that cannot be read, lie elsewhere, or hold what the legend does not know."""


class TrainError(XgfmError):
    """A training run that cannot be started, or was stopped; the message says what is left on disk."""


class ClusterError(XgfmError):
    """Workers that cannot be started as asked."""


class MissingExtraError(ImportError):
    """An optional package is needed; the message is the line that installs it."""

    def __init__(self, package: str, extra: str, need: str) -> None:
        super().__init__(f'{need} needs {package}, which is not installed: pip install "xgfm[{extra}]"')

    def __reduce__(self) -> tuple[type[ImportError], tuple[str]]:
        # Dask pickles what a worker raises; pickle would call __init__ with the message alone.
        return ImportError, (str(self),)
