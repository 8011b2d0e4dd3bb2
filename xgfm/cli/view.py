"""The command that shows a store on a map: view.

In: what was typed. Out: the address of a map on this machine, served until Ctrl-C.
"""

from __future__ import annotations

from typing import Annotated

import typer

from xgfm.cli.base import app
from xgfm.cli.words import busy


@app.command()
def view(
    store: Annotated[str, typer.Argument(help="Zarr store of a result or of a job: a folder or a URL.")],
    under: Annotated[
        str | None, typer.Option(help="Store of a cube, whose true colours are drawn underneath the map.")
    ] = None,
    port: Annotated[int, typer.Option(help="Of this machine; 0 for any that is free.")] = 8765,
) -> None:
    """Show a store on a map, in the browser of this machine.

    On a remote machine, take its port to yours first: ssh -L 8765:127.0.0.1:8765 HOST
    """
    import warnings

    from rasterio.errors import NotGeoreferencedWarning

    from xgfm.viewer import view as serve

    # GDAL's datasets in memory have no place for a moment, and rasterio's filter for that is not one of threads.
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    with busy(f"opening {store}"):
        viewer = serve(store, under=under, port=port)
    typer.echo(f"{store} is at {viewer.url} (Ctrl-C stops)")
    try:
        viewer.wait()
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
