"""The command line."""

from xgfm.cli.commands import app, main

__all__ = ["app", "main"]
