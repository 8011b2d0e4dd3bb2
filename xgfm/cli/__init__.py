"""The command line: maps of a region in one call, jobs, training.

In: what was typed. Out: text, files, an exit code.
"""

from __future__ import annotations

from xgfm.cli import jobs, maps, train, view  # each adds its commands
from xgfm.cli.base import app, main

__all__ = ["app", "jobs", "main", "maps", "train", "view"]
