"""What a notebook shows of an object, and how a figure gets to be seen.

In: rows of text, or the shape of a figure. Out: a small table as HTML with every text escaped, or a matplotlib figure
that is shown exactly once by a notebook and by ``plt.show()`` in a script. Nothing is lazy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

from xgfm.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SWATCH = "display:inline-block;width:0.8em;height:0.8em;border:1px solid #666;margin:0 0.3em 0 0.8em;background:"
_LEFT = "text-align:left;padding:0.1em 1em 0.1em 0"


# ---- tables


def card(title: str, rows: Mapping[str, object]) -> str:
    """Return a small table of names and values under a title, as HTML.

    Parameters
    ----------
    title : str
        What the object is.
    rows : mapping
        Name and value of each line; a value that is None or empty is left out. Every text is escaped; only what
        `legend` and `table` returned goes in as it is.
    """
    lines = [[name, value] for name, value in rows.items() if value is not None and value != ""]
    return table(lines, title=title)


def table(rows: Iterable[Sequence[object]], *, head: Sequence[object] = (), title: str = "") -> str:
    """Return rows as an HTML table whose first column names them; every text is escaped.

    Parameters
    ----------
    rows : iterable of sequences
        Cells, as text.
    head : sequence
        Names of the columns.
    title : str
        What stands above.
    """
    caption = f'<caption style="text-align:left;font-weight:bold">{escape(title)}</caption>' if title else ""
    names = "".join(f'<th style="{_LEFT}">{_shown(cell)}</th>' for cell in head)
    body = "".join(_line(row) for row in rows)
    return _Html(f"<table>{caption}{f'<tr>{names}</tr>' if names else ''}{body}</table>")


def legend(classes: Iterable[tuple[str, str]]) -> str:
    """Return names of classes, each behind a square of its colour, as HTML.

    Parameters
    ----------
    classes : iterable of (str, str)
        Name, and colour as ``#rrggbb``.
    """
    return _Html(
        "".join(
            f'<span style="white-space:nowrap"><span style="{_SWATCH}{escape(color)}"></span>{escape(name)}</span> '
            for name, color in classes
        )
    )


class _Html(str):
    """Text that is HTML already, made here."""

    __slots__ = ()


def _line(row: Sequence[object]) -> str:
    first, *others = (_shown(cell) for cell in row)
    cells = "".join(f'<td style="{_LEFT}">{cell}</td>' for cell in others)
    return f'<tr><th style="{_LEFT}">{first}</th>{cells}</tr>'


def _shown(cell: object) -> str:
    return cell if isinstance(cell, _Html) else escape(str(cell))


# ---- figures


def subplots(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Make a figure and its axes, as ``matplotlib.pyplot.subplots`` does, in a way that it is seen once.

    Parameters
    ----------
    rows, columns : int
        Of axes.
    **options
        As pyplot takes them.

    Returns
    -------
    figure, axes
        In a notebook the figure appears once: as the value of its cell, or at the cell's end. In a script with windows
        it is pyplot's, and ``plt.show()`` shows it. Where nothing can show it, pyplot does not hold on to it: a loop
        that saves a thousand figures keeps none of them.

    Raises
    ------
    MissingExtraError
        Where matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "drawing") from error
    figure, axes = plt.subplots(rows, columns, **options)
    backend = plt.get_backend().lower()
    if "inline" in backend:
        # As the value of a cell it would be shown twice: by the cell, and by pyplot at its end.
        figure._repr_mimebundle_ = partial(_take, figure)
    elif backend in _windowless():
        plt.close(figure)
    return figure, axes


def _windowless() -> list[str]:
    from matplotlib.backends.registry import BackendFilter, backend_registry

    names: list[str] = backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)  # type: ignore[no-untyped-call]
    return [name.lower() for name in names]


def _take(figure: Any, **asked: Any) -> dict[str, Any]:  # noqa: ARG001 - as IPython calls it
    """Take a figure from pyplot, since it is about to be shown; its picture comes from matplotlib's own formats."""
    import matplotlib.pyplot as plt

    plt.close(figure)
    return {}
