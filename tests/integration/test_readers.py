"""Every output through every tool that is installed, and the table of the docs says what came of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import readers
from reader_outputs import Output, make

NAMES = (
    "class map", "class map, chunk = shard", "probability", "GeoTIFF", "netCDF, class map", "netCDF, probability",
    "embedding, float16", "embedding, int8", "reconstruction", "job's store", "overview level", "fractions, cf",
    "fractions, cmip",
)  # fmt: skip


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Output]:
    return {output.name: output for output in make(tmp_path_factory.mktemp("outputs"))}


def documented() -> dict[tuple[str, str], str]:
    """The cells of the page: yes, no or -."""
    text = readers.TABLE.read_text().partition(readers.BEGIN)[2].partition(readers.END)[0]
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    head, _, *rows = lines
    return {(row[0], tool): cell.split(" (")[0] for row in rows for tool, cell in zip(head[1:], row[1:], strict=True)}


def test_every_output_is_in_the_table(outputs: dict[str, Output]) -> None:
    assert tuple(outputs) == NAMES
    assert set(documented()) == {(name, tool) for name in NAMES for tool in readers.TOOLS}


@pytest.mark.parametrize("tool", readers.TOOLS)
def test_tools_find_what_the_table_says(outputs: dict[str, Output], tool: str) -> None:
    if readers.version(tool) is None:
        pytest.skip(f"{tool} is not installed; {readers.WHEEL} names a newer GDAL")
    found = {name: readers.cell(tool, output) for name, output in outputs.items()}
    table = documented()
    assert {name: cell.partition(":")[0] for name, cell in found.items()} == {n: table[n, tool] for n in found}, found


def test_a_store_that_says_another_place_is_found_out(outputs: dict[str, Output], tmp_path: Path) -> None:
    from dataclasses import replace

    from affine import Affine

    right = outputs["class map"]
    moved = replace(
        right, box=right.box.__class__(right.box.shape, right.box.affine * Affine.translation(1, 0), right.box.crs)
    )
    other = replace(right, values=right.values[::-1])
    for wrong in (moved, other):
        assert readers.cell("xarray", wrong).startswith("no: other" if wrong is other else "no: another")
        assert readers.cell("rioxarray", wrong) != readers.YES
