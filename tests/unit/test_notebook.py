"""What notebooks and scripts show: escaped tables, and each figure once."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from results import CLASSES, spec

from xgfm.climate.area import estimate_areas
from xgfm.jobs.job import Status, Verified
from xgfm.models.handle import ModelHandle, load_task
from xgfm.notebook import card, legend, table
from xgfm.train.loop.trainer import TrainResult
from xgfm.train.sampling.leakage import LeakageReport
from xgfm.train.study.experiment import StudyResult

NASTY = "<img src=x onerror=alert(1)>&amp;\"'"


class Page(HTMLParser):
    """Tags and cells of a table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.open.append(tag)
        if tag in ("th", "td", "caption"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "tags are nested wrongly"

    def handle_data(self, data: str) -> None:
        self.cells[-1] += data


ALLOWED = {"table", "caption", "tr", "th", "td", "span"}
TEXTS = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1)


@given(TEXTS, st.dictionaries(TEXTS, TEXTS, max_size=4), st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_any_text_comes_out_as_it_went_in(title: str, rows: dict[str, str], classes: list[tuple[str, str]]) -> None:
    page = Page(card(title, {**rows, "empty": "", "none": None, "classes ": legend(classes)}))
    assert page.tags <= ALLOWED
    assert page.open == []
    cells = [title, *(cell for row in rows.items() for cell in row if row[0] != "classes "), "classes "]
    assert page.cells[: len(cells)] == cells
    assert page.cells[-1].split() == " ".join(name for name, _ in classes).split()


@given(st.lists(st.lists(TEXTS, min_size=2, max_size=2), max_size=3))
def test_tables_too(rows: list[list[str]]) -> None:
    page = Page(table(rows, head=["a", "b"]))
    assert page.cells == ["a", "b", *(cell for row in rows for cell in row)]


def handle(**changes: Any) -> ModelHandle:
    return ModelHandle(spec(**changes), "bundled:x", "0" * 64)


def study(**changes: Any) -> StudyResult:
    runs = [
        {"method": m, "fraction": f, "seed": s, "chips": 9, "mean_iou": 0.5 + 0.1 * f, "mean_iou_low": 0.4,
         "mean_iou_high": 0.7}
        for m in ("full", "scratch") for f in (0.1, 1.0) for s in (0, 1)
    ]  # fmt: skip
    given: dict[str, Any] = {"runs": pd.DataFrame(runs), "failed": {}}
    return StudyResult(Path("a"), "mean_iou", history=pd.DataFrame(), **{**given, **changes})


SCORES = {"scores": {"mean_iou": {"value": 0.61234, "low": 0.5, "high": None}, NASTY: {"value": None}}}
SHOWN: list[tuple[Callable[[], Any], list[str]]] = [
    (lambda: handle(title=NASTY, quirks=(NASTY,), units=NASTY), [CLASSES[1].name, "3 frames of blue", "30 m"]),
    (lambda: handle(demonstration=True), ["nothing real"]),
    (lambda: handle(kind="regression", classes=(), units="Mg ha-1"), ["regression, in Mg ha-1"]),
    (lambda: ModelHandle(spec().model, None, "0" * 64), ["1 x 16 x 16", "made by a function"]),
    (lambda: load_task("crop-demo"), ["crop-demo", "Soybeans", "nothing real"]),
    (lambda: Status(NASTY, planned=False), ["not planned yet"]),
    (lambda: Status("s", True, 10, 6, (NASTY, "b"), {"outside": 3}), ["6 of 10", "missing2", "failed2: ", "3 outside"]),
    (lambda: Verified(5, (NASTY,)), ["1 of 5 blocks are not as they were written"]),
    (lambda: TrainResult(Path(NASTY), pd.DataFrame(), SCORES, 1200), ["0.612 [0.500, -]", "of step 1,200", "mean IoU"]),
    (lambda: study(), ["fine-tuned", "100 %", "0.600", "from scratch"]),
    (lambda: study(runs=pd.DataFrame(), failed={NASTY: NASTY}), ["no run is finished", "failed: "]),
    (
        lambda: estimate_areas(np.diag([50, 40]) + 2, [20, 10], classes=[NASTY, "b"]),
        ["95% intervals", "user's accuracy", "overall accuracy"],
    ),
    (lambda: LeakageReport(NASTY, 1.0, 2.0, 0.1, 0.2, 100.0, True), ["LEAKS", "100 m"]),
]


@pytest.mark.parametrize(("make", "words"), SHOWN, ids=[str(n) for n in range(len(SHOWN))])
def test_objects_show_what_they_are(make: Callable[[], Any], words: list[str]) -> None:
    html = make()._repr_html_()
    page = Page(html)
    assert page.tags <= ALLOWED
    assert page.open == []
    text = "".join(page.cells)
    for word in words:
        assert word in text
    assert len(html) < 10_000


# ---- figures

DRAWN = """
    import matplotlib.pyplot as plt
    from xgfm.notebook import subplots
"""


def test_a_notebook_shows_each_figure_once(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="notebooks are run where myst-nb is installed")
    client = pytest.importorskip("nbclient", reason="notebooks are run where myst-nb is installed")
    pytest.importorskip("ipykernel", reason="notebooks are run where myst-nb is installed")
    cells = [
        "subplots()[0]",  # the value of a cell
        "figure, axis = subplots()",  # drawn on the way
        "figure",  # once more, as the user asks
        "figure, axis = subplots(); plt.show()",
        "figure, axis = subplots(); figure",
        "subplots(); subplots()[0]",
        "from IPython.core.formatters import format_display_data as f\nlen(f(subplots()[0])[0]['image/png'])",
        "len(plt.get_fignums())",
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in (textwrap.dedent(DRAWN), *cells)]
    )
    client.NotebookClient(notebook, timeout=60, kernel_name="python3", cwd=str(tmp_path)).execute()
    pictures = [sum("image/png" in o.get("data", {}) for o in cell.outputs) for cell in notebook.cells[1:-1]]
    assert pictures == [1, 1, 1, 1, 1, 2, 0]  # the last one was kept for later, as other tools do
    assert notebook.cells[-1].outputs[0]["data"]["text/plain"] == "0"


WINDOWS = """
    from matplotlib.backend_bases import FigureManagerBase
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    class FigureManager(FigureManagerBase):
        def show(self):
            print("shown", id(self.canvas.figure))

    class FigureCanvas(FigureCanvasAgg):
        manager_class = FigureManager

    def show(*args, **options):
        from matplotlib._pylab_helpers import Gcf
        for manager in Gcf.get_all_fig_managers():
            manager.show()
"""


@pytest.mark.parametrize(("backend", "shown"), [("module://windows", 1), ("agg", 0)])
def test_a_script_shows_what_its_backend_can(tmp_path: Path, backend: str, shown: int) -> None:
    (tmp_path / "windows.py").write_text(textwrap.dedent(WINDOWS))
    script = f"{textwrap.dedent(DRAWN)}\nfigure, axis = subplots()\nplt.show()\nprint('held', len(plt.get_fignums()))"
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={"MPLBACKEND": backend, "PYTHONPATH": str(tmp_path), "PATH": "", "HOME": str(tmp_path)},
    ).stdout  # fmt: skip
    assert said.count("shown") == shown
    assert f"held {shown}" in said  # where nothing can show it, nothing holds on to it
