"""A job on one page: what is done and what is not, where, why, how long it took, and what was quoted.

In: plan, `Summary` and quote of a job. Out: an HTML page that needs nothing else: no script, no picture, no font from
anywhere. It is made of a complete run and of one that is not alike.
"""

from __future__ import annotations

import html
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from xgfm.cube.hrefs import redacted
from xgfm.jobs.drawing import COLOURS, map_of
from xgfm.jobs.quote import Comparison, Quote, in_bytes, in_time
from xgfm.jobs.summary import OUTCOMES, PARTS, Summary

if TYPE_CHECKING:
    from xgfm.jobs.planned import Plan

_PLAIN: Mapping[int, str] = {}
LISTED = 200
"""Failed blocks that are told of one by one."""
PART_COLOURS = dict(zip(PARTS, ("#0072b2", "#bbbbbb", "#e69f00", "#009e73"), strict=True))
_STYLE = """
body{font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;color:#222;
 background:#fff;max-width:980px;margin:2rem auto;padding:0 1.2rem}
h1{font-size:1.45rem;margin:0 0 .2rem}h2{font-size:1.1rem;margin:2rem 0 .6rem}p{margin:.4rem 0}
.state{border-left:6px solid;padding:.5rem .9rem;margin:1rem 0;background:#f6f6f6}
.state.complete{border-color:#009e73}.state.incomplete{border-color:#d55e00}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:#eee;padding:.1em .35em;
 border-radius:3px;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.28rem .8rem .28rem 0;
 border-bottom:1px solid #e4e4e4;vertical-align:top}th{font-weight:600}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.reason{overflow-wrap:anywhere}td.id{white-space:nowrap}.facts th{width:11rem;font-weight:400;color:#555}
svg.map,svg.bar{display:block;max-width:100%;height:auto}svg .lines path{vector-effect:non-scaling-stroke}
svg .name{font:11px sans-serif;text-anchor:middle;dominant-baseline:middle;paint-order:stroke;stroke:#fff;
 stroke-width:3px}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;margin:.6rem 0;padding:0;list-style:none}
.legend i{display:inline-block;width:.9em;height:.9em;margin-right:.4em;vertical-align:-.1em;border:1px solid #0003}
.note{color:#555;font-size:.9em}@media print{body{margin:0}}
"""


def render(plan: Plan, summary: Summary, quote: Quote) -> str:
    """Return the report of a job as an HTML page.

    Parameters
    ----------
    plan, summary
        The job, and what it has come to.
    quote
        What was to be expected.
    """
    title = f"{plan.task.spec.title or plan.spec.task}, {plan.spec.period}"
    body = [
        f"<h1>{_text(title)}</h1>",
        f"<p><code>{_text(redacted(plan.spec.store))}</code></p>",
        _state(plan, summary),
        _map(plan, summary),
        _failed(plan, summary),
        _times(summary),
        _compared(_comparison(quote, summary)),
        _facts(plan, summary),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _state(plan: Plan, summary: Summary) -> str:
    """Whether the job is complete; if not, what is missing and what to do."""
    counts, store = summary.counts, shlex.quote(redacted(plan.spec.store))
    if summary.complete:
        return f'<p class="state complete"><b>Complete.</b> All {summary.blocks:,} blocks are done.</p>'
    said = [f"<b>Not complete.</b> {counts['done']:,} of {summary.blocks:,} blocks are done"]
    if counts["failed"]:
        said.append(f"{counts['failed']:,} failed; <code>xgfm retry {_text(store)} --failed</code> tries again")
    if counts["missing"]:
        said.append(f"{counts['missing']:,} missing; <code>xgfm resume {_text(store)}</code> goes on")
    return f'<p class="state incomplete">{". ".join(said)}.</p>'


def _map(plan: Plan, summary: Summary) -> str:
    counts = summary.counts
    legend = "".join(
        f'<li><i style="background:{COLOURS[name]}"></i>{"outside of the region" if name == "outside" else name}: '
        f"{counts[name]:,}</li>"
        for name in reversed(OUTCOMES)
        if counts[name]
    )
    drawn = map_of(plan.areas, summary.outcomes, plan.region)
    return f'<h2>Blocks</h2>{drawn}<ul class="legend">{legend}</ul><p class="note">{_text(_where(plan))}</p>'


def _where(plan: Plan) -> str:
    block = plan.spec.block
    drawn = "The line is the region."
    if plan.native:
        return f"Each MGRS tile on its own grid, in blocks of {block} pixels. {drawn}"
    box = plan.areas[0].geobox
    name = f"EPSG:{box.crs.epsg}" if box.crs is not None and box.crs.epsg else "its own CRS"
    return f"{box.shape[0]:,} x {box.shape[1]:,} pixels in {name}, in blocks of {block} pixels. {drawn}"


def _failed(plan: Plan, summary: Summary) -> str:
    if not summary.failed:
        return ""
    rows = [
        (entry.block, f"{entry.attempts}", redacted(entry.reason or ""), entry.item or "")
        for entry in summary.failed[:LISTED]
    ]
    more = len(summary.failed) - len(rows)
    rest = f'<p class="note">And {more:,} more, in <code>failed/</code> of the job\'s records.</p>' if more else ""
    command = f"xgfm retry {shlex.quote(redacted(plan.spec.store))} --failed"
    kinds = {0: "id", 2: "reason", 3: "reason"}
    table = _table(("block", "attempts", "reason", "item"), rows, numbers=(1,), kinds=kinds)
    return f"<h2>Failed blocks</h2>{table}{rest}<p>To try them again: <code>{_text(command)}</code></p>"


def _times(summary: Summary) -> str:
    """Where the time of the blocks went."""
    if not summary.counts["done"]:
        return ""
    seconds = {part: np.asarray(summary.seconds[part]) for part in PARTS}
    total = sum(float(values.sum()) for values in seconds.values()) or 1.0
    rows = [
        (
            part,
            in_time(values.sum()),
            f"{values.sum() / total:.0%}",
            *(f"{value:,.2f} s" for value in (np.median(values), np.quantile(values, 0.95), values.max())),
        )
        for part, values in seconds.items()
    ]
    header = ("part", "sum over blocks", "share", "median block", "95 % of blocks", "longest")
    shares = {part: float(values.sum()) / total for part, values in seconds.items()}
    note = (
        "Parts of different blocks run side by side: their sum is more than the time that went by. "
        "“wait” is a block that was read and waited for the device."
    )
    return (
        f"<h2>Time</h2>{_bar(shares)}{_table(header, rows, numbers=range(1, 6))}"
        f'<p class="note">{note}</p>{_rates(summary)}'
    )


def _bar(shares: dict[str, float]) -> str:
    """Shares, one beside the other, with their names below."""
    shapes, left = [], 0.0
    for part, share in shares.items():
        width = 980 * share
        shapes.append(f'<rect x="{left:.1f}" width="{width:.1f}" height="26" fill="{PART_COLOURS[part]}"/>')
        left += width
    legend = "".join(
        f'<li><i style="background:{PART_COLOURS[part]}"></i>{part} {share:.0%}</li>' for part, share in shares.items()
    )
    return (
        '<svg class="bar" role="img" aria-label="shares of the time" viewBox="0 0 980 26" width="980" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(shapes)}</svg><ul class="legend">{legend}</ul>'
    )


def _rates(summary: Summary) -> str:
    predict = sum(summary.seconds["predict"])
    if not predict or summary.started is None or summary.ended is None:
        return ""
    went = (summary.ended - summary.started).total_seconds()
    return (
        f"<p>From {summary.started:%Y-%m-%d %H:%M} to {summary.ended:%Y-%m-%d %H:%M} UTC ({in_time(went)}, pauses "
        f"counted), on {_workers(len(summary.workers))}; {summary.windows / predict:,.3g} windows per second of a "
        f"device; {in_bytes(summary.bytes_read)} read.</p>"
    )


def _workers(count: int) -> str:
    return f"{count:,} workers" if count != 1 else "1 worker"


def _comparison(quote: Quote, summary: Summary) -> Comparison:
    seconds = {part: float(np.sum(summary.seconds[part])) for part in ("predict", "read")}
    return Comparison(
        quote,
        summary.counts["done"],
        len(summary.failed),
        summary.windows,
        summary.bytes_read,
        seconds["predict"],
        seconds["read"],
    )


def _compared(comparison: Comparison) -> str:
    header, *rows = comparison.rows()
    share = "" if comparison.share == 1 else f" Ratios are of {comparison.share:.0%} of the blocks, those done."
    return (
        f"<h2>Quoted and taken</h2>{_table(header, rows, numbers=(1, 2, 3))}"
        f'<p class="note">Device time is quoted where a rate was given or measured before the run.{share}</p>'
    )


def _facts(plan: Plan, summary: Summary) -> str:
    rows = [
        ("task", plan.spec.task),
        ("period", plan.spec.period),
        ("items", f"{sum(plan.tiles.values()):,} of {len(plan.tiles):,} MGRS tiles"),
        ("left out", f"{plan.left_out_count:,} items that cannot be read" if plan.left_out_count else ""),
        ("tried again", f"{summary.repeated:,} blocks" if summary.repeated else ""),
        ("weights", ", ".join(filter(None, summary.weights))),
        ("xgfm", ", ".join(filter(None, summary.versions))),
        ("ledger digest", summary.digest),
        ("sources", str(plan.sources.get("attribution", ""))),
    ]
    cells = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows if value)
    left = "".join(f"<li><code>{_text(each.item)}</code> {_text(each.reason)}</li>" for each in plan.left_out[:20])
    more = f"<p>Items left out, the first ones:</p><ul>{left}</ul>" if left else ""
    return f'<h2>Facts</h2><table class="facts">{cells}</table>{more}'


def _table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Iterable[int] = (),
    kinds: Mapping[int, str] = _PLAIN,
) -> str:
    classes = {number: f' class="{kind}"' for number, kind in {**dict.fromkeys(numbers, "n"), **kinds}.items()}
    head = "".join(f"<th{classes.get(i, '')}>{_text(cell)}</th>" for i, cell in enumerate(header))
    body = "".join(
        f"<tr>{''.join(f'<td{classes.get(i, str())}>{_text(cell)}</td>' for i, cell in enumerate(row))}</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: str) -> str:
    return html.escape(value)
