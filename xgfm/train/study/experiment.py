"""A study run from end to end: every method, share of the labels and seed, and what they come to.

In: a `StudySpec` or its YAML file, and a Dask client where there is one. Out: a `StudyResult`: tables and figures,
which are also written beside the runs. A run that is finished leaves a record, and is not run again; a run that was cut
off goes on from its checkpoint. Nothing is lazy.
"""

from __future__ import annotations

import json
import os
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import pandas as pd

from xgfm.errors import TrainError, XgfmError
from xgfm.infer.embed import loaded
from xgfm.models import registry
from xgfm.notebook import table
from xgfm.store.objects import Objects
from xgfm.train.chips.chips import Chips, open_chips
from xgfm.train.chips.subsets import subset
from xgfm.train.fit import unguarded
from xgfm.train.loop.history import HISTORY
from xgfm.train.loop.interrupts import Stopped
from xgfm.train.settings import TrainSettings
from xgfm.train.study.baselines import forest, unet_base
from xgfm.train.study.curves import SCORES, cells_of, differences, draw_efficiency, draw_learning, markdown, summary
from xgfm.train.study.spec import ForestSettings, Run, StudySpec, digest_of

if TYPE_CHECKING:
    from distributed import Client, Future

_ALONE = threading.Lock()
"""Runs draw from torch's global generator, so one process has one run at a time."""


class StudyWarning(UserWarning):
    """Some runs of a study failed; the message says which, and why."""


@dataclass(frozen=True)
class Planned:
    """A run with everything that it needs; it is sent to a worker as it is."""

    run: Run
    digest: str
    """Of all that decides over its numbers."""
    folder: str
    """Of the study."""
    settings: TrainSettings | None
    """None for a forest."""
    chips: str
    forest: ForestSettings

    @property
    def name(self) -> str:
        """Of its folder and its record: other settings are another run."""
        return f"{self.run.name}-{self.digest[:8]}"


@dataclass(frozen=True)
class StudyResult:
    """What the runs of a study say so far."""

    folder: Path
    score: str
    """What tables and figures show."""
    runs: pd.DataFrame
    """A line for each finished run: ``method``, ``fraction``, ``seed``, ``chips``, ``groups``, ``seconds`` and every
    score with its interval over test blocks, ``<score>_low`` and ``<score>_high``."""
    history: pd.DataFrame
    """A line for each validation of each run: ``method``, ``fraction``, ``seed``, ``step``, ``loss``, ``val_...``."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why a run has no record."""

    def summary(self, score: str | None = None) -> pd.DataFrame:
        """Return mean and interval of each method and share of the labels: see `xgfm.train.study.curves.summary`."""
        return summary(self.runs, score or self.score)

    def differences(self, against: str = "scratch", score: str | None = None) -> pd.DataFrame:
        """Return the paired gain over another method: see `xgfm.train.study.curves.differences`."""
        return differences(self.runs, score or self.score, against)

    def plot_efficiency(self, score: str | None = None) -> Any:
        """Draw the score against the share of the labels."""
        return draw_efficiency(self.runs, score or self.score)

    def plot_learning(self) -> Any:
        """Draw the validation score against the training step."""
        column = f"val_{self.score}"
        known = column in self.history and self.history[column].notna().any()
        return draw_learning(self.history, column if known else "val_loss")

    def __str__(self) -> str:
        """Tables as Markdown, and which runs failed."""
        parts = [f"{SCORES[self.score]} on held-out blocks, mean over seeds [95 % interval]"]
        parts.append(markdown(self.summary()) if len(self.runs) else "no run is finished")
        methods = set(self.runs["method"]) if len(self.runs) else set()
        if "scratch" in methods and len(methods) > 1:
            parts += ["gain over from scratch, paired by seed and labels", markdown(self.differences())]
        parts += [f"failed: {name}: {reason}" for name, reason in self.failed.items()]
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        said = f"{SCORES[self.score]} on held-out blocks, mean over seeds [95 % interval]"
        head, *rows = cells_of(self.summary()) if len(self.runs) else [["no run is finished"]]
        return table(
            [*rows, *([f"failed: {name}", reason] for name, reason in self.failed.items())], head=head, title=said
        )

    def write(self) -> None:
        """Write tables, and figures where matplotlib is installed, into the study's folder."""
        self.runs.to_csv(self.folder / "runs.csv", index=False)
        self.history.to_csv(self.folder / "history.csv", index=False)
        (self.folder / "summary.md").write_text(f"{self}\n", encoding="utf-8")
        if find_spec("matplotlib") is None or not len(self.runs):
            return
        self.plot_efficiency().savefig(self.folder / "efficiency.png", dpi=110)
        if len(self.history):
            self.plot_learning().savefig(self.folder / "learning.png", dpi=110)


def experiment(study: StudySpec | str | os.PathLike[str], *, client: Client | None = None) -> StudyResult:
    """Run what is missing of a study, and return what all of it says.

    Parameters
    ----------
    study : StudySpec or path
        The record, or its YAML file.
    client : distributed.Client, optional
        Runs go to its workers, as many at once as there are workers; they must see the chips and the folder under the
        same paths. A run whose worker dies is run again elsewhere, from its last checkpoint. Without a client runs
        follow each other here.

    Returns
    -------
    StudyResult
        Of all finished runs. It is also written: ``runs.csv``, ``history.csv``, ``summary.md``, ``efficiency.png`` and
        ``learning.png`` in the study's folder.

    Raises
    ------
    TrainError
        Before any run: keys that no training run has, chips without a test split, an unknown base. Later: the study was
        stopped (SIGTERM, Ctrl-C); the same call goes on.

    Warns
    -----
    StudyWarning
        Some runs failed; the others are in the result. The same call tries them again.
    """
    spec = study if isinstance(study, StudySpec) else StudySpec.read(study)
    chips = open_chips(spec.chips)
    planned = plan(spec, chips)
    folder = Path(spec.folder)
    folder.mkdir(parents=True, exist_ok=True)
    spec.write(folder / "study.yaml")
    done = records(folder)
    missing = [one for one in planned if one.name not in done]
    failed = dict(_here(missing) if client is None else _on_workers(missing, client))
    result = collect(planned, spec.score or _usual(chips), failed)
    result.write()
    if failed:
        warnings.warn(f"{len(failed)} of {len(planned)} runs failed: {failed}", StudyWarning, stacklevel=2)
    return result


def plan(spec: StudySpec, chips: Chips) -> list[Planned]:
    """Return every run of a study with its settings, so that nothing is refused after hours.

    Raises
    ------
    TrainError
        Keys that no training run has, or chips without a training, validation or test split.
    """
    for split in ("train", "val", "test"):
        if not len(chips.indexes(split)):
            raise TrainError(f"{spec.chips} has no chip in the split {split!r}; a study needs train, val and test")
    unet = unet_base(chips.facts, spec.widths) if "unet" in spec.methods else None
    weights = None if spec.base is None else _base_digest(spec)
    return [_planned(spec, run, unet, [chips.facts.digest, weights]) for run in spec.runs()]


def _planned(spec: StudySpec, run: Run, unet: dict[str, Any] | None, known: list[Any]) -> Planned:
    settings = None if run.method == "forest" else spec.settings(run, unet)
    what = spec.forest.model_dump() if settings is None else settings.numbers()
    numbers = {key: value for key, value in what.items() if key not in ("chips", "base")}  # places; digests say what
    digest = digest_of(asdict(run), numbers, unet if run.method == "unet" else None, known)
    planned = Planned(run, digest, spec.folder, settings, spec.chips, spec.forest)
    if settings is None:
        return planned
    folder = Path(spec.folder) / "runs" / planned.name
    return Planned(
        run, digest, spec.folder, settings.model_copy(update={"folder": str(folder)}), spec.chips, spec.forest
    )


def _base_digest(spec: StudySpec) -> str:
    assert spec.base is not None
    if spec.base_spec is not None:
        return digest_of(spec.base, spec.base_spec)
    registry.spec_of(spec.base)  # refuses unknown names
    return loaded(spec.base).digest


def _usual(chips: Chips) -> str:
    return "rmse" if chips.facts.kind == "regression" else "mean_iou"


# ---- running


def _here(planned: Sequence[Planned]) -> Iterator[tuple[str, str]]:
    """Run one after the other; yield what failed, with the reason."""
    for one in planned:
        reason = execute(one)
        if reason is not None:
            yield one.name, reason


def _on_workers(planned: Sequence[Planned], client: Client) -> Iterator[tuple[str, str]]:
    """Keep as many runs under way as there are workers; yield what failed, with the reason."""
    from distributed import as_completed

    waiting = list(reversed(planned))
    under_way: dict[Future[str | None], Planned] = {}
    finished = as_completed()

    def send() -> None:
        while waiting and len(under_way) < max(len(client.nthreads()), 1):
            one = waiting.pop()
            future = client.submit(execute, one, key=f"study-{one.name}-{time.time_ns()}", pure=False)
            under_way[future] = one
            finished.add(future)

    send()
    for future in finished:
        one = under_way.pop(future)
        reason = future.result() if future.status == "finished" else repr(future.exception())
        if reason is not None:
            yield one.name, reason
        send()


def execute(planned: Planned) -> str | None:
    """Run one run and write its record; return why there is none.

    Called on workers. The record is written last, in one go.
    """
    # A task that asks its cluster to read lends its thread to a second run, and waits for that one to end to get it
    # back; the second waits for the lock. So what a run reads, it reads itself.
    with _ALONE, dask.config.set(scheduler="synchronous"):
        start = time.monotonic()
        try:
            chips = open_chips(planned.chips)
            kept = subset(chips.groups(chips.indexes("train")), planned.run.fraction, planned.run.seed)
            train = chips.indexes("train")[kept]
            if planned.settings is None:
                scores = forest(chips, train, planned.forest, planned.run.seed).to_json()
            else:
                scores = dict(unguarded(planned.settings).metrics)
        except Stopped:  # whoever stops one run means all of them
            raise
        except (XgfmError, RuntimeError, OSError) as error:  # a mistake in code does not look like this
            return f"{type(error).__name__}: {error}"
        record = {
            **asdict(planned.run),
            "digest": planned.digest,
            "chips": len(train),
            "groups": len(set(chips.groups(train).tolist())),
            "seconds": round(time.monotonic() - start, 2),
            "metrics": scores,
            "folder": None if planned.settings is None else planned.settings.folder,
        }
        _book(planned.folder).put(f"{planned.name}.json", json.dumps(record, indent=1).encode())
    return None


# ---- what they say


def _book(folder: str | Path) -> Objects:
    return Objects(Path(folder) / "records")


def records(folder: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Return the records of the finished runs in a study's folder, by name."""
    book = _book(Path(folder))
    return {name.removesuffix(".json"): json.loads(book.get(name)) for name in sorted(book.names())}


def collect(planned: Sequence[Planned], score: str, failed: dict[str, str] | None = None) -> StudyResult:
    """Return what the finished ones of some runs say. Records of other settings in the folder stay out of it."""
    folder = Path(planned[0].folder)
    done = records(folder)
    known = {one.name: done[one.name] for one in planned if one.name in done}
    lines = [_line(record) for record in known.values()]
    curves = [table for name, record in known.items() if (table := _curve(folder, name, record)) is not None]
    history = pd.concat(curves, ignore_index=True) if curves else pd.DataFrame()
    return StudyResult(folder, score, pd.DataFrame(lines), history, dict(failed or {}))


def _line(record: dict[str, Any]) -> dict[str, Any]:
    line = {key: record[key] for key in ("method", "fraction", "seed", "chips", "groups", "seconds")}
    for name, value in record["metrics"]["scores"].items():
        line |= {name: value["value"], f"{name}_low": value.get("low"), f"{name}_high": value.get("high")}
    return line


def _curve(folder: Path, name: str, record: dict[str, Any]) -> pd.DataFrame | None:
    path = folder / "runs" / name / HISTORY
    if not path.exists():  # a forest has none
        return None
    table = pd.read_csv(path)
    validated = table[table["val_loss"].notna()]
    return validated.assign(**{key: record[key] for key in ("method", "fraction", "seed")})
