"""The server of the local map: fixed routes over one store, on this machine alone.

In: an `Atlas`. Out: a Starlette application, and a `Viewer` that serves it from a thread. No route takes a path or an
address; requests under another host's name are refused, so that no page of the web reads what is served here.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from functools import wraps
from importlib import resources
from types import TracebackType
from typing import TYPE_CHECKING, Any

from xgfm.errors import MissingExtraError, XgfmError
from xgfm.viewer.blocks import Blocks
from xgfm.viewer.page import describe, value_at
from xgfm.viewer.tiles import Atlas, TooMuchError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
PORTS = 65_535
"""The last there is."""
FILES = {
    "index.html": "text/html; charset=utf-8",
    "viewer.js": "text/javascript; charset=utf-8",
    "viewer.css": "text/css; charset=utf-8",
    "leaflet.js": "text/javascript; charset=utf-8",
    "leaflet.css": "text/css; charset=utf-8",
}
"""What is served of the package: nothing else can be named."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""Of every response: nothing from elsewhere is loaded, and a store that is being written is seen as it is."""
_START = 30.0
"""Seconds within which the server is up."""


class NotThere(XgfmError):  # noqa: N818 - what the layer is
    """Something that the store does not have."""


def application(atlas: Atlas, blocks: Blocks | None = None) -> Starlette:
    """Return the web application of a store.

    Parameters
    ----------
    atlas : Atlas
        The store.
    blocks : Blocks, optional
        Of the job that writes it.

    Raises
    ------
    MissingExtraError
        Where the web server is not installed.
    """
    try:
        import uvicorn  # noqa: F401
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.routing import Route
    except ImportError as error:
        raise MissingExtraError(str(error.name), "view", "the viewer") from error
    routes = _Routes(atlas, blocks)
    return Starlette(
        routes=[
            Route("/", routes.index),
            Route("/static/{name}", routes.static),
            Route("/map.json", routes.map),
            Route("/tiles/{layer}/{z:int}/{x:int}/{y:int}.png", routes.tile),
            Route("/under/{z:int}/{x:int}/{y:int}.png", routes.under),
            Route("/area.json", routes.area),
            Route("/value.json", routes.value),
            Route("/blocks.json", routes.blocks),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
    )


def _answer(method: Callable[[Any, Request], tuple[bytes, str]]) -> Callable[[Any, Request], Response]:
    """Turn what a route gives into a response, and what was asked wrongly into one that says so."""

    @wraps(method)
    def answered(self: Any, request: Request) -> Response:
        from starlette.responses import Response

        try:
            body, kind = method(self, request)
            status = 200
        except XgfmError as error:
            body, kind = json.dumps({"error": str(error)}).encode(), "application/json"
            status = 404 if isinstance(error, NotThere) else 422 if isinstance(error, TooMuchError) else 400
        return Response(body, status, HEADERS, kind)

    return answered


class _Routes:
    """The routes; Starlette runs each in a thread."""

    def __init__(self, atlas: Atlas, blocks: Blocks | None) -> None:
        self._atlas, self._blocks = atlas, blocks

    @_answer
    def index(self, request: Request) -> tuple[bytes, str]:  # noqa: ARG002
        return _file("index.html")

    @_answer
    def static(self, request: Request) -> tuple[bytes, str]:
        return _file(request.path_params["name"])

    @_answer
    def map(self, request: Request) -> tuple[bytes, str]:  # noqa: ARG002
        return _json(describe(self._atlas, self._blocks))

    @_answer
    def tile(self, request: Request) -> tuple[bytes, str]:
        layer = self._layer(request.path_params["layer"])
        hidden = frozenset(_whole(v, "hide") for v in request.query_params.get("hide", "").split(",") if v)
        number = self._position(request, "class")
        when = self._position(request, "time")
        zoom, x, y = (request.path_params[key] for key in "zxy")
        return self._atlas.tile(layer, zoom, x, y, time=when, number=number, hidden=hidden), "image/png"

    @_answer
    def under(self, request: Request) -> tuple[bytes, str]:
        if self._atlas.under is None:
            raise NotThere("there are no true colours underneath; give a cube with --under")
        when = self._position(request, "time", len(self._atlas.times(under=True)))
        return self._atlas.under_tile(*(request.path_params[key] for key in "zxy"), time=when), "image/png"

    @_answer
    def area(self, request: Request) -> tuple[bytes, str]:
        layer = self._layer(request.query_params.get("layer", ""))
        if not layer.is_map:
            raise NotThere(f"{layer.name} has no classes")
        try:
            shares = self._atlas.areas(layer, _bounds(request), time=self._position(request, "time"))
        except TooMuchError:  # an answer like any other: views are wider than tiles
            return _json({"note": "zoom in for areas", "shares": []})
        listed = [{"value": s.value, "km2": s.km2, "share": s.share} for s in shares]
        return _json({"note": "of what is in view", "shares": listed})

    @_answer
    def value(self, request: Request) -> tuple[bytes, str]:
        lon, lat = (_number(request.query_params.get(key, ""), key) for key in ("lon", "lat"))
        if not (-180 <= lon <= 180 and -90 <= lat <= 90):
            raise XgfmError(f"lon={lon}, lat={lat} is no place; expected degrees")
        return _json(value_at(self._atlas, self._blocks, lon, lat, time=self._position(request, "time")))

    @_answer
    def blocks(self, request: Request) -> tuple[bytes, str]:
        if self._blocks is None:
            raise NotThere("there are no records of a job beside this store")
        return _json(self._blocks.geojson(_bounds(request)))

    def _layer(self, name: str) -> Any:
        if name not in self._atlas.layers:
            raise NotThere(f"there is no layer {name!r}; there are {list(self._atlas.layers)}")
        return self._atlas.layers[name]

    def _position(self, request: Request, dim: str, size: int | None = None) -> int:
        """A position along a dimension of the store: 0 where none is asked for."""
        size = self._atlas.base.sizes.get(dim, 0) if size is None else size
        found = _whole(request.query_params.get(dim, "0"), dim)
        if not 0 <= found < max(size, 1):
            raise XgfmError(f"{dim}={found}: positions are 0 to {max(size, 1) - 1}")
        return found


def _file(name: str) -> tuple[bytes, str]:
    if name not in FILES:
        raise NotThere("there is no such file")
    return (resources.files("xgfm.viewer") / "static" / name).read_bytes(), FILES[name]


def _json(value: Any) -> tuple[bytes, str]:
    return json.dumps(value, allow_nan=False).encode(), "application/json"


def _whole(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise XgfmError(f"{name}={text[:20]!r} is no whole number")
    return int(text)


def _number(text: str, name: str) -> float:
    try:
        return float(text[:40])
    except ValueError as error:
        raise XgfmError(f"{name}={text[:20]!r} is no number") from error


def _bounds(request: Request) -> tuple[float, float, float, float]:
    """West, south, east, north of a view, as far as Mercator goes."""
    parts = [_number(part, "bbox") for part in request.query_params.get("bbox", "").split(",")]
    if len(parts) != 4:
        raise XgfmError("bbox= is west,south,east,north in degrees")
    west, south, east, north = max(parts[0], -180.0), max(parts[1], -85.0), min(parts[2], 180.0), min(parts[3], 85.0)
    if not (west < east and south < north):
        raise XgfmError(f"bbox={','.join(map(str, parts))} holds nothing; expected west,south,east,north in degrees")
    return west, south, east, north


class Viewer:
    """A map that is being served. As the last value of a cell, a notebook shows it.

    Parameters
    ----------
    app : Starlette
        From `application`.
    port : int
        Of this machine; 0 for any that is free.

    Raises
    ------
    XgfmError
        Where the port is taken.
    """

    def __init__(self, app: Starlette, port: int = 0) -> None:
        import uvicorn

        self._socket = _bound(port)
        self.url = f"http://{HOST}:{self._socket.getsockname()[1]}/"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        start = time.monotonic()
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() - start > _START:
                raise XgfmError(f"the server at {self.url} does not start")
            time.sleep(0.01)

    def wait(self) -> None:
        """Serve until the process is interrupted."""
        try:
            while self._thread.is_alive():
                self._thread.join(1.0)
        finally:
            self.close()

    def close(self) -> None:
        """Stop serving."""
        self._server.should_exit = True
        self._thread.join(10.0)
        self._socket.close()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Viewer at {self.url}>"

    def _repr_html_(self) -> str:
        return f'<iframe src="{self.url}" width="100%" height="560" style="border:1px solid #ccc"></iframe>'


def _bound(port: int) -> socket.socket:
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= PORTS:
        raise XgfmError(
            f"port={port!r} is no port of a machine; expected a number from 1 to {PORTS}, or 0 for a free one"
        )
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
    except OSError as error:
        found.close()
        raise XgfmError(f"port={port} of this machine cannot be used ({error.strerror}); give another, or 0") from error
    return found
