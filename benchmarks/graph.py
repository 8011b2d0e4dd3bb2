"""Build time, tasks and pickled bytes of a prediction's graph, by number of chunks."""

from __future__ import annotations

import pickle
import time

import dask
import dask.array as da
from harness import cube, report, task

import xgfm

CHUNK = 1024


def main() -> None:
    handle = task("v1-100m-t3")
    rows = []
    for count in (20, 40, 160):
        size = CHUNK * count
        data = cube(da.zeros((3, 6, size, size), dtype="int16", chunks=(1, 1, CHUNK, CHUNK)))
        start = time.perf_counter()
        result = xgfm.predict(data, handle)
        build = time.perf_counter() - start
        size = len(pickle.dumps(result.__dask_graph__()))
        row = {"chunks": count**2, "build_s": build, "pickled_mb": size / 1e6, "tasks_per_chunk": None}
        if count <= 40:  # listing the tasks takes longer than building the graph
            (listed,) = dask.optimize(result)
            row["tasks_per_chunk"] = len(dict(listed.__dask_graph__())) / count**2
        rows.append(row)
    report("graph", rows)


if __name__ == "__main__":
    main()
