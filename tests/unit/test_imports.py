"""The folders are the data's way: imports go one way, and ``import xgfm`` is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "xgfm"

ORDER = (
    "errors",
    "palette",
    "notebook",
    "cf",
    "grid",
    "windows",
    "models.spec",
    "cube",
    "models",
    "infer",
    "store",
    "climate",
    "describe",
    "cluster",
    "jobs",
    "train",
    "figures",
    "viewer",
    "accessor",
    "__init__",
    "demo",
    "about",
    "cli",
)
"""A module imports from the places before its own, or from its own folder."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def rank(module: str) -> int:
    places = [i for i, place in enumerate(ORDER) if module == place or module.startswith(f"{place}.")]
    assert places, f"{module} has no place in the order of folders"
    return places[0]


def runtime_imports(tree: ast.Module) -> list[str]:
    """Return what a module of this package imports when it runs, in functions too; not what only types need."""
    typing_only = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for n in ast.walk(block)
    }
    found: list[str] = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "xgfm":
            base = node.module.removeprefix("xgfm").removeprefix(".")
            for alias in node.names:
                inner = PACKAGE / base.replace(".", "/") / alias.name
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                found.append(".".join(p for p in (base, alias.name) if p) if is_module else base or "__init__")
    return found


@pytest.mark.parametrize("path", MODULES, ids=[name_of(m) for m in MODULES])
def test_imports_go_one_way(path: Path) -> None:
    me = name_of(path)
    for other in runtime_imports(ast.parse(path.read_text())):
        same_folder = me.split(".")[0] == other.split(".")[0]
        version = other == "__init__" and me in ("infer.inputs", "jobs.finish")  # results say which version made them
        forwards = me in ("__init__", "accessor")
        assert rank(other) < rank(me) or same_folder or version or forwards, (
            f"{me} imports {other}, which comes after it"
        )


@pytest.mark.parametrize("path", MODULES, ids=[name_of(m) for m in MODULES])
def test_modules_fit_in_the_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize(("folder", "strangers"), [("cube", {"torch"}), ("models", {"xarray", "dask", "distributed"})])
def test_folders_do_not_see_each_others_libraries(folder: str, strangers: set[str]) -> None:
    for path in (PACKAGE / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not strangers & {n.split(".")[0] for n in names}, f"{path.name} imports {strangers}"


HEAVY = ("torch", "rasterio", "odc", "stackstac", "pystac_client", "matplotlib", "distributed", "dask.array")


def test_import_is_light() -> None:
    code = f"import sys, xgfm; print(sorted(m for m in {HEAVY!r} if m in sys.modules))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert seen == "[]"


def test_every_public_name_is_there() -> None:
    import xgfm

    for name in xgfm.__all__:
        assert getattr(xgfm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'predicct'"):
        _ = xgfm.predicct
