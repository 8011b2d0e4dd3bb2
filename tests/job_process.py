"""Run a job in a process of its own: ``python job_process.py STORE [THREADS]``. Says a line for each block."""

from __future__ import annotations

import sys
from typing import Any

from xgfm.cluster import open as open_cluster
from xgfm.jobs.job import open_job
from xgfm.jobs.progress import Progress


def main(store: str, threads: str = "1") -> None:
    count = Progress.finish

    def finish(self: Progress, *args: Any) -> None:
        count(self, *args)
        print("done", self.done, flush=True)

    Progress.finish = finish  # type: ignore[method-assign]
    with open_cluster("local", workers=1, threads=int(threads), memory="0", silence_logs="CRITICAL") as client:
        outcome = open_job(store).run(client, progress=False)
    print("outcome", outcome, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
