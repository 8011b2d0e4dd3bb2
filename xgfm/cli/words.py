"""What commands print: tables, pairs, and that something goes on.

In: texts. Out: lines on standard output; on standard error, what is not the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer


@contextmanager
def busy(words: str) -> Iterator[None]:
    """Show that something goes on whose length is not known; a terminal only."""
    from rich.console import Console

    with Console(stderr=True).status(words):
        yield


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns under a header."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names, and what there is to say of them."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        typer.echo(f"{name.ljust(width)}  {value}".rstrip())


def percent(value: Any) -> str:
    """Return a percentage as it is printed; a dash where there is none."""
    return "-" if value is None else f"{float(value):.0f}%"
