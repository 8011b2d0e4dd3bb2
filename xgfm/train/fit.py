"""From labels to a finished task in one call.

In: chips, or cubes with labels; what to begin with; a folder. Out: the task in ``folder/task``, its scores and history.
Cubes are cut into chips first. What was done before in the same folder is not done again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from xgfm.errors import LabelError, TrainError
from xgfm.models import registry
from xgfm.models.spec import ModelSpec, TaskSpec, to_json
from xgfm.store.lock import Holder
from xgfm.store.objects import Objects, local_folder
from xgfm.train.chips.chips import Chips, open_chips, write_chips
from xgfm.train.loop.trainer import SETTINGS, TrainResult, train
from xgfm.train.ranks.launch import launch, on_worker
from xgfm.train.result.finish import check_artifact, finish
from xgfm.train.settings import TaskSettings, TrainSettings
from xgfm.train.start.new_task import check_bands

if TYPE_CHECKING:
    from distributed import Client

CHIPS = "chips.zarr"
_CHIPS = (
    "plan", "size", "frames", "attempts", "stride", "split", "shares", "block", "buffer", "balance", "min_labelled",
)  # fmt: skip
"""Options of `write_chips`; the others are settings."""


def fit(
    data: Chips | TrainSettings | str | os.PathLike[str] | xr.DataArray | list[xr.DataArray],
    labels: Any = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | TaskSpec | ModelSpec | Mapping[str, Any] | None = None,
    task: str | Mapping[str, Any] | TaskSettings | None = None,
    client: Client | None = None,
    ranks: int = 1,
    **settings: Any,
) -> TrainResult:
    """Fine-tune a model or a task on labels.

    Parameters
    ----------
    data
        Chips, or the path of their store; a cube, or several, with ``labels``; or complete `TrainSettings`.
    labels
        Label array of each cube, as `xgfm.labels` makes them.
    folder
        Where everything goes: chips of cubes, checkpoints, history, the finished task. The same call goes on with a run
        that was interrupted.
    base
        What to begin with: name or path of a task or model, ``"scratch"`` for a small encoder of random weights, or a
        record, whose module is built with random weights.
    task
        Name of the new task; or a mapping of ``name``, ``title``, ``decoder``, ``window``, ``halo``, ``coords``.
    client
        Dask client: its workers cut the chips, and train where ``ranks`` is more than 1 or a worker has a GPU.
    ranks
        Processes that train together, on workers of ``client``.
    **settings
        Those of `TrainSettings` (``method=``, ``epochs=``, ``lr=``, ``loss=``, ...); with cubes also those of
        `write_chips` (``plan=``, ``size=``, ``frames=``, ``split=``, ``shares=``, ``block=``, ``buffer=``, ...).
        ``frames`` of a longer cube are those of a base task whose decoder is kept; else give them, or a composite.

    Returns
    -------
    TrainResult
        ``metrics`` are those of the test split with intervals over spatial groups; ``task`` is the folder that
        ``cube.gfm.predict(task=...)`` takes.

    Raises
    ------
    TrainError
        Settings that do not fit each other or the chips, or a run that was stopped or went wrong: see `train`.
    LabelError
        Labels that do not fit the cube: see `write_chips`.
    Taken
        Another process trains in this folder.

    Examples
    --------
    >>> result = xgfm.fit(cube, labels, base="prithvi-eo-2.0-300m", frames=3, folder="fields")  # doctest: +SKIP
    >>> cube.gfm.predict(task=result.task)  # doctest: +SKIP
    """
    if isinstance(data, TrainSettings):
        _refuse_more(labels, folder, base, task, settings)
        return run(data, client=client, ranks=ranks)
    if folder is None or base is None:
        missing = [name for name, given in (("folder", folder), ("base", base)) if given is None]
        raise TrainError(f"fit needs {' and '.join(f'{name}=' for name in missing)}")
    cutting = {name: settings.pop(name) for name in _CHIPS if name in settings}
    store = _store(data, labels, Path(folder), cutting)
    record = TrainSettings(
        chips=store,
        folder=str(Path(folder).expanduser()),
        base=_base(base),
        task=_task(task),
        **settings,
    )
    check_artifact(record)
    if not isinstance(data, Chips | str | os.PathLike):
        _check_bands(record, data)
        if (frames := _frames(record, labels)) is not None:
            cutting.setdefault("frames", frames)
        drawn: dict[str, Any] = {} if "plan" in cutting else {"seed": record.seed}
        write_chips(data, labels, store, client=client, **drawn, **cutting)
    return run(record, client=client, ranks=ranks)


def run(settings: TrainSettings, *, client: Client | None = None, ranks: int = 1) -> TrainResult:
    """Train as settings say, judge the best weights on the test split, write the finished task.

    Parameters
    ----------
    settings
        Complete.
    client, ranks
        As of `fit`.

    Raises
    ------
    Taken
        Another process trains in this folder.
    """
    if ranks > 1 and client is None:
        raise TrainError(f"ranks={ranks} needs client=, a Dask client with as many workers; or start it by torchrun")
    check_artifact(settings)  # before there is a folder
    folder = Path(settings.folder).expanduser()
    if client is not None:  # workers may have been started elsewhere
        folder = folder.absolute()
        chips = str(local_folder(settings.chips) or settings.chips)
        settings = settings.model_copy(update={"folder": str(folder), "chips": chips})
    folder.mkdir(parents=True, exist_ok=True)
    with Holder(Objects(folder)):
        return unguarded(settings, client=client, ranks=ranks)


def unguarded(settings: TrainSettings, *, client: Client | None = None, ranks: int = 1) -> TrainResult:
    """Do as `run`, for launchers that see to it themselves that nobody else trains in the folder.

    Started again on another node, their runs must not wait until their dead selves are known to be dead.
    """
    check_artifact(settings)
    folder = Path(settings.folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    settings.write(folder / SETTINGS)
    trained = train(settings) if client is None else launch(settings, client, ranks)
    metrics = finish(settings) if client is None else on_worker(partial(finish, settings), client)
    return TrainResult(trained.folder, trained.history, metrics, trained.step)


def _store(data: Any, labels: Any, folder: Path, cutting: Mapping[str, Any]) -> str:
    """Return where the chips are, or will be; refuse what does not go together."""
    if isinstance(data, Chips | str | os.PathLike):
        if labels is not None or cutting:
            more = ["labels", *cutting] if labels is not None else list(cutting)
            raise TrainError(f"{more} are for cubes; these chips are cut already: leave them out")
        chips = data if isinstance(data, Chips) else open_chips(data)
        return chips.path
    if labels is None:
        raise TrainError("a cube needs labels=, a label array on its grid: xgfm.labels(source, cube)")
    if not isinstance(labels, xr.DataArray | list | tuple):
        given = repr(os.fspath(labels)) if isinstance(labels, str | os.PathLike) else f"a {type(labels).__name__}"
        raise LabelError(f"labels= is {given}; expected a label array on the cube's grid: xgfm.labels(source, cube)")
    return str(folder.expanduser() / CHIPS)


def _check_bands(settings: TrainSettings, data: xr.DataArray | list[xr.DataArray]) -> None:
    """Refuse a cube without a band of the base before it is cut into chips."""
    if settings.from_scratch:
        return
    spec = registry.find(settings.base, settings.base_spec).spec
    for cube in [data] if isinstance(data, xr.DataArray) else data:
        check_bands(spec.name, spec.bands, [str(band) for band in cube["band"].values])


def _frames(settings: TrainSettings, labels: Any) -> int | None:
    """Return the frames that a longer cube becomes: as of `predict`, those of the task whose decoder is kept."""
    arrays = [labels] if isinstance(labels, xr.DataArray) else labels
    dated = any("time" in getattr(one, "dims", ()) for one in arrays)
    if dated or settings.from_scratch or settings.task.decoder is not None:
        return None
    spec = registry.find(settings.base, settings.base_spec).spec
    return spec.frames if isinstance(spec, TaskSpec) else None


def _base(base: str | os.PathLike[str] | TaskSpec | ModelSpec | Mapping[str, Any]) -> Any:
    if isinstance(base, Mapping):
        return base  # a record as settings hold it, which they check
    if isinstance(base, TaskSpec | ModelSpec):
        kind = "task" if isinstance(base, TaskSpec) else "model"
        return {"kind": kind, "spec": to_json(base)}
    text = os.fspath(base)
    if text != "scratch":
        registry.spec_of(text)  # an unknown name is refused before chips are cut
    return text


def _task(task: str | Mapping[str, Any] | TaskSettings | None) -> Any:
    if task is None:
        return TaskSettings()
    return {"name": task} if isinstance(task, str) else task


def _refuse_more(labels: Any, folder: Any, base: Any, task: Any, settings: Mapping[str, Any]) -> None:
    named = {"labels": labels, "folder": folder, "base": base, "task": task, **settings}
    if given := [name for name, value in named.items() if value is not None]:
        raise TrainError(f"{given} are given beside complete settings; put them into the settings")
