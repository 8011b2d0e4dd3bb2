"""Every block once more: whether the store still holds what was written.

In: a plan and a client. Out: how many blocks were read, and the ids of those that differ from their ledger entry.
Blocks are read on the workers, a bounded number at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from xgfm.jobs.block import check_block, plan_digest
from xgfm.store.ledger import Entry, Ledger
from xgfm.store.sinks import open_sink

if TYPE_CHECKING:
    from distributed import Client, Future

    from xgfm.jobs.planned import Plan

IN_FLIGHT = 64


def verify_plan(plan: Plan, client: Client) -> tuple[int, tuple[str, ...]]:
    """Read every block that is done.

    Returns
    -------
    checked : int
        Blocks that were read.
    wrong : tuple of str
        Those whose pixels have another digest than the ledger says, or cannot be decoded.
    """
    from distributed import as_completed

    ledger, digest = Ledger(plan.objects), plan_digest(plan.objects)
    names = tuple(map(str, plan.template(plan.areas[0]).data_vars))
    spec = plan.spec
    store = None if spec.sink == "zarr" else open_sink(spec.store, spec.sink).open_for_reading()

    def submitted(entries: Iterator[Entry], count: int) -> dict[Future[Any], str]:
        return {
            client.submit(
                check_block,
                plan.objects.url,
                entry.block,
                entry.digest,
                names=names,
                digest=digest,
                store=store,
                pure=False,
            ): entry.block
            for entry in islice(entries, count)
        }

    entries = ledger.entries(sorted(ledger.done()))
    flying = submitted(entries, IN_FLIGHT)
    checked, wrong = 0, []
    landing = as_completed(flying)
    for future in landing:
        block = flying.pop(future)
        checked += 1
        if not future.result():
            wrong.append(block)
        more = submitted(entries, 1)
        flying.update(more)
        landing.update(more)
    return checked, tuple(sorted(wrong))
