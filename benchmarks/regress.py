"""Run the small benchmarks and compare them with the stored results of an earlier commit.

``python benchmarks/regress.py`` prints each figure, then and now, and ends with status 1 where one got worse by more
than its tolerance; ``--update`` stores what was measured instead. Sizes and ratios are compared, not seconds: those
depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"

RUNS: dict[str, tuple[list[str], str, dict[str, float]]] = {
    "graph": ([], "chunks", {"pickled_mb": 1.1, "tasks_per_chunk": 1.02}),
    "memory": (["--sides", "1", "4"], "blocks", {"to_first": 1.15}),
    "seams": ([], "way", {"largest_step": 1.01}),
    "three_rates": (["--model", "tiny-t3", "--size", "800"], "model", {"zarr_ratio": 0.8, "cog_ratio": 0.8}),
}
"""Benchmark: arguments, what names a row, and how much a figure may change: above 1 grow, below 1 shrink."""


def run(name: str, arguments: list[str]) -> dict[str, Any]:
    """Run a benchmark and return its last line."""
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer


def worse(name: str, now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Print then and now, and return what got worse."""
    _, key, tolerances = RUNS[name]
    before = {row[key]: row for row in then["rows"]}
    found = []
    for row in now["rows"]:
        for figure, tolerance in tolerances.items():
            old, new = before.get(row[key], {}).get(figure), row[figure]
            if old is None or new is None:
                continue
            bad = new > old * tolerance if tolerance > 1 else new < old * tolerance
            print(f"{name:12} {row[key]!s:20} {figure:16} {old:10.4g} {new:10.4g} {'WORSE' if bad else ''}")
            found += [f"{name} {row[key]} {figure}"] if bad else []
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="store what is measured now")
    args = parser.parse_args()
    found: list[str] = []
    for name, (arguments, *_) in RUNS.items():
        path = RESULTS / f"regress-{name}.json"
        now = run(name, arguments)
        if args.update:
            path.write_text(json.dumps(now, indent=1) + "\n")
        else:
            found += worse(name, now, json.loads(path.read_text()))
    sys.exit(f"worse than before: {', '.join(found)}" if found else 0)


if __name__ == "__main__":
    main()
