"""What README.md and the docs say is there, is there."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import xgfm

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]

FENCE = re.compile(r"^```(?:\{code-cell\} )?python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")
PYTHON = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, code in enumerate(FENCE.findall(page.read_text(encoding="utf-8")))
]


def names_of_xgfm(code: str) -> set[str]:
    """Names that a piece of code takes from ``xgfm`` itself."""
    tree = ast.parse(code)
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "xgfm"}
    froms = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "xgfm"]
    return used | {alias.name for n in froms for alias in n.names}


def code_of(text: str) -> str:
    """Code without a cell's options and a notebook's trailing semicolon."""
    return re.sub(r"\A(---\n.*?\n---\n|(:\w.*\n)+)", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("text", PYTHON)
def test_python_of_the_pages_parses_and_names_what_exists(text: str) -> None:
    used = names_of_xgfm(code_of(text))
    assert {n for n in used if n not in xgfm.__all__} <= {"cf", "errors", "grid"}


def test_names_are_found_in_code() -> None:
    assert names_of_xgfm("import xgfm\nxgfm.nothing(1)\nfrom xgfm import other") == {"nothing", "other"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    assert missing == []


def test_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", README, re.MULTILINE)) <= targets
    assert {"demo", "test"} <= set(re.findall(r"^make (\w+)", README, re.MULTILINE))


def test_extras_of_the_table_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\| `(\w+)` \|", index, re.MULTILINE))
    assert shown == set(extras) - {"dev", "docs"}


def test_the_one_line_fits_the_signatures() -> None:
    from xgfm.cube.open import open_hls

    calls = [n for n in ast.walk(ast.parse(FENCE.findall(README)[0])) if isinstance(n, ast.Call)]
    opened = next(n for n in calls if getattr(n.func, "attr", "") == "open_hls")
    inspect.signature(open_hls).bind(**{str(k.arg): None for k in opened.keywords})
    assert {n.func.attr for n in calls if isinstance(n.func, ast.Attribute)} == {"open_hls", "predict", "to_zarr"}


def test_it_stays_short_and_its_picture_small() -> None:
    assert len(README.splitlines()) < 120
    assert (ROOT / "docs" / "_static" / "demo.png").stat().st_size < 300_000


def test_make_says_what_takes_minutes_before_it_starts(tmp_path: Path) -> None:
    words = ["make", "-n", f"VENV={tmp_path}/venv", "test"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    pip = next(i for i, line in enumerate(said) if "pip install" in line and "--editable" in line)
    assert said[pip - 1] == f'echo "installing packages into {tmp_path}/venv; some minutes the first time"'
