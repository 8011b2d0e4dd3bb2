"""The command line as a whole: its help, its version, and how errors are told.

In: what was typed. Out: a command that runs, an exit code. An error of this package is one line, in which arguments are
named as options, and exit code 1; ``--debug`` shows its traceback.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from xgfm.errors import MissingExtraError, XgfmError

_EXTRAS = {"torch": "torch", "safetensors": "torch", "huggingface_hub": "torch"}
"""Packages that modules of commands import, and the extra that installs them."""


class _Commands(TyperGroup):
    """Commands whose expected errors are a line, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (XgfmError, ImportError) as error:
            said = _explain(error, self._options_of(ctx))
            if ctx.params["debug"] or said is None:
                raise
            typer.secho(f"error: {said}", err=True, fg="red")
            raise typer.Exit(1) from error

    def _options_of(self, ctx: Any) -> dict[str, str]:
        """Arguments, as functions name them, and the options of the invoked command that they are."""
        command = self.commands.get(ctx.invoked_subcommand or "")
        parameters = command.params if command is not None else []
        named = {str(p.name): p.opts[0] for p in parameters if p.opts[0].startswith("--")}
        written = "path" if "--overwrite" in named.values() else "folder"
        return {**named, written: "--out"} if "out" in named else named


def _explain(error: Exception, options: Mapping[str, str]) -> str | None:
    """One line for an error that is expected, in the words of the command line; None for a bug."""
    if isinstance(error, ImportError) and not isinstance(error, MissingExtraError):
        if error.name not in _EXTRAS:
            return None
        error = MissingExtraError(error.name or "", _EXTRAS[error.name or ""], "this command")
    return with_options(" ".join(" ".join([str(error), *getattr(error, "__notes__", [])]).split()), options)


def with_options(said: str, options: Mapping[str, str]) -> str:
    """Write ``bbox=(1, 2, 3, 4)`` as ``--bbox 1 2 3 4`` where it is an option, and not in a call of Python."""
    if not options:
        return said
    value = r"'[^']*'|\([^()]*\)|-?\d+(?:\.\d+)?|True"
    argument = re.compile(rf"(?<![\w.])(?<!\w\()({'|'.join(map(re.escape, options))})=({value})?(?![=\w])")
    return argument.sub(lambda found: f"{options[found[1]]} {_typed(found[2])}".rstrip(), said)


def _typed(value: str | None) -> str:
    """Return a value as it is typed in a shell."""
    if value is None or value == "True":
        return ""
    return shlex.quote(value[1:-1]) if value.startswith("'") else value.strip("()").replace(",", "")


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main() -> None:
    """Run the command line."""
    app(prog_name="xgfm")


@app.callback(invoke_without_command=True)
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,  # noqa: ARG001
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Maps from HLS images, by geospatial foundation models.

    \b
    A first map, of a simulated season, without network:
      xgfm demo

    \b
    A real one:
      xgfm search --bbox -93.70 42.00 -93.60 42.10 --datetime 2024-04/2024-10 --save items.json
      xgfm predict --task crop --catalog items.json --bbox -93.70 42.00 -93.60 42.10 --out map.zarr
      xgfm info map.zarr

    \b
    A county or a continent, block by block, on one machine or many:
      xgfm quote job.yaml
      xgfm run job.yaml --cluster slurm --workers 8 --memory 16GB --walltime 04:00:00

    Reading NASA's images needs an Earthdata login: a token in EARTHDATA_TOKEN, or a line in ~/.netrc.
    """  # noqa: D301
    if version:
        import xgfm

        typer.echo(xgfm.__version__)
        raise typer.Exit
