"""What is left to do when a run has ended: metadata, overviews, the records for catalogues, and the report.

In: a plan and its ledger, the quote, and workers. Out: for a complete job, consolidated metadata, overviews where the
job asks for them, ``item.json`` (STAC) and ``provenance.json`` (W3C PROV); for any job ``report.html``. All of it can
be done again, and what was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata
from itertools import islice
from typing import TYPE_CHECKING, Any

from xgfm.describe import provenance, stac
from xgfm.describe.sources import Source, sources_of
from xgfm.jobs import items as stored
from xgfm.jobs.outline import outline_of
from xgfm.jobs.plan import SPEC
from xgfm.jobs.quote import Quote, quote
from xgfm.jobs.report import render
from xgfm.jobs.summary import Summary, summarise
from xgfm.store.ledger import Ledger
from xgfm.store.objects import Objects, local_folder, zarr_store
from xgfm.store.overviews import add_overviews
from xgfm.store.sinks import open_sink
from xgfm.store.template import consolidate

if TYPE_CHECKING:
    from distributed import Client

    from xgfm.jobs.planned import Plan

QUOTE, REPORT, ITEM, PROVENANCE = "quote.json", "report.html", "item.json", "provenance.json"
IN_FLIGHT = 64
"""Blocks of an overview that are made at once."""
SOFTWARE = ("xgfm", "torch", "xarray", "zarr", "rasterio", "numpy")
"""Packages whose versions are told."""


@dataclass(frozen=True)
class Finished:
    """What was written."""

    complete: bool
    report: str
    """Address of the report."""
    item: str | None = None
    """Address of the STAC Item; None for a job that is not complete."""
    provenance: str | None = None


def finish_plan(plan: Plan, client: Client | None = None) -> Finished:
    """Finish a job as far as it is done.

    Parameters
    ----------
    plan
        Of the job.
    client
        Of workers that make the overviews; this process, where there is none.

    Returns
    -------
    Finished
        Where the records are.
    """
    objects = plan.objects
    summary = summarise(plan, Ledger(objects))
    if summary.complete:
        _complete_store(plan, summary, client)
        sources = sources_of(plan.tiles, _items(plan), folder=stored.FOLDER)
        described = {
            ITEM: stac.result_item(_result(plan, summary, sources)).to_dict(transform_hrefs=False),
            PROVENANCE: provenance.record(_run(plan, summary, sources)),
        }
        for name, document in described.items():
            objects.put(name, (json.dumps(document, indent=1) + "\n").encode())
    objects.put(REPORT, render(plan, summary, quoted(plan)).encode())
    report, *rest = (f"{objects.url}/{name}" for name in (REPORT, ITEM, PROVENANCE))
    return Finished(summary.complete, report, *(rest if summary.complete else ()))


def quoted(plan: Plan) -> Quote:
    """Return the quote that stands among the job's records, or one without a rate."""
    try:
        return Quote.from_json(plan.objects.get(QUOTE))
    except FileNotFoundError:
        return quote(plan)


def _complete_store(plan: Plan, summary: Summary, client: Client | None) -> None:
    """Add overviews, and gather the metadata."""
    groups = [area.group for area in plan.areas]
    if plan.spec.sink != "zarr":
        if plan.spec.overviews:
            _add_in_one_commit(plan, groups, summary.digest)
        return
    if plan.spec.overviews:
        run = map if client is None else through(client)
        add_overviews(plan.spec.store, groups, source=summary.digest, records=plan.objects, run=run)
    else:
        consolidate(zarr_store(plan.spec.store))


def _add_in_one_commit(plan: Plan, groups: list[str], source: str) -> None:
    """Add overviews to a repository: readers see all of them, or none; what is interrupted begins anew."""
    sink = open_sink(plan.spec.store, plan.spec.sink)
    fork = sink.open_for_writing()
    add_overviews(fork, groups, source=source)
    sink.commit([fork], "overviews")


def through(client: Client) -> Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]:
    """Return a `map` whose function is called on the workers of a client, a bounded number at a time, in no order."""

    def mapped(function: Callable[[Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        from distributed import as_completed

        rest = iter(values)
        landing = as_completed([client.submit(function, value, pure=False) for value in islice(rest, IN_FLIGHT)])
        for future in landing:
            yield future.result()
            landing.update([client.submit(function, value, pure=False) for value in islice(rest, 1)])

    return mapped


def _items(plan: Plan) -> Iterator[Mapping[str, Any]]:
    for tile in plan.tiles:
        yield from stored.read_tile(plan.objects, tile)


def _result(plan: Plan, summary: Summary, sources: list[Source]) -> stac.Result:
    """Gather the facts of a STAC Item."""
    span, first = plan.spec.span, plan.areas[0]
    variables = plan.template(first).data_vars
    outline = outline_of(plan.areas, summary.outcomes)
    return stac.Result(
        identity=plan.spec.store.rstrip("/").rpartition("/")[2],
        store=_beside(plan.spec.store),
        grids={area.group: area.geobox for area in plan.areas},
        variables={str(name): str(variable.dtype) for name, variable in variables.items()},
        task=plan.task.spec,
        weights=plan.task.digest,
        outline=plan.region if outline.is_empty else outline,
        period=(
            span.start.to_pydatetime().replace(tzinfo=UTC),
            (span.stop - timedelta(seconds=1)).to_pydatetime().replace(tzinfo=UTC),
        ),
        created=datetime.now(UTC),
        software=software(),
        sources=sources,
        attrs=plan.sources,
        snapshots=plan.spec.sink == "icechunk",
    )


def _run(plan: Plan, summary: Summary, sources: list[Source]) -> provenance.Run:
    """Gather the facts of a PROV record."""
    now = datetime.now(UTC)
    return provenance.Run(
        store=_beside(plan.spec.store),
        ledger=summary.digest,
        started=summary.started or now,
        ended=summary.ended or now,
        blocks=summary.counts["done"],
        workers=len(summary.workers),
        task=plan.task.spec.name,
        weights=summary.weights or {plan.task.digest: 0},
        software=software(),
        sources=sources,
        spec=digest_of(plan.objects),
    )


def digest_of(objects: Objects) -> str:
    """Return the SHA-256 of the job's record."""
    return hashlib.sha256(objects.get(SPEC)).hexdigest()


def _beside(store: str) -> str:
    """Address of a store, from its records: of one in a folder by name, so that both can be moved."""
    folder = local_folder(store)
    return store.rstrip("/") if folder is None else f"../{folder.name}"


def software() -> dict[str, str]:
    """Return versions of the packages that a result depends on; those that are not installed are left out."""
    from xgfm import __version__

    found = {"xgfm": __version__}
    for name in SOFTWARE[1:]:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
