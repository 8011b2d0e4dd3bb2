"""Reading from where the granules are: GDAL's settings, and credentials looked up when a block is read.

In: the plain href of an asset. Out: what GDAL opens, and the settings around it. A graph holds hrefs and plain
settings only; tokens are looked up in the environment of the worker that reads, in the thread that reads, and stay
inside GDAL. Planetary Computer hrefs are signed by GDAL itself, which renews its token before it ends.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

from xgfm.cube.hrefs import PLANETARY_COMPUTER_HOSTS, is_host, is_local, redacted
from xgfm.errors import ReadError, XgfmError

T = TypeVar("T")

GDAL_SETTINGS: Mapping[str, str] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no directory listing, no side files
    "GDAL_HTTP_MAX_RETRY": "5",
    "GDAL_HTTP_RETRY_DELAY": "1",  # seconds before the first retry; each further one waits about twice as long
    "GDAL_HTTP_RETRY_CODES": "400,409,429,500,502,503,504",  # NASA's gateway and Azure answer 400 and 409 under load
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "60",  # seconds; a stuck read would hang its worker
    "GDAL_HTTP_MULTIPLEX": "YES",
    "GDAL_HTTP_VERSION": "2",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",  # header and tile index of a COG in one request
}
"""What every read runs under, on whichever worker and thread."""

EARTHDATA_HOSTS = ("earthdata.nasa.gov", "earthdatacloud.nasa.gov")
"""Hosts, with their subdomains, that take an Earthdata token. It is sent nowhere else."""

_SECRET = re.compile(
    r"BEARER|HEADER|USERPWD|PASS|PWD|SECRET|TOKEN|COOKIE|SESSION|SAS|KEY|CREDENTIAL|CONNECTION_STRING",
    re.IGNORECASE,
)
"""In the names of settings."""
_SECRET_VALUE = re.compile(
    r"[:/][^@\s]*@"  # user:password@host, with or without a scheme before it
    r"|(key|secret|token|pass\w*|pwd|sig|signature|credential|sas)\w*\s*[=:]|\b(bearer|basic)\s|PRIVATE KEY",
    re.IGNORECASE,
)

# GDAL remembers for the life of the process that a file could not be opened, and what a bad answer held. Paths whose
# last read failed are opened past that memory, so that a second try is one. (If it fails in another way than the
# first, GDAL may still report the first status.)
_failed: set[str] = set()


def gdal_settings(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the settings of every read, with a user's own on top.

    Raises
    ------
    XgfmError
        If one of them is a secret: they are stored in the graph.
    """
    extra = extra or {}
    if not isinstance(extra, Mapping):
        raise XgfmError(f"gdal= is a {type(extra).__name__}; expected GDAL settings, gdal={{'GDAL_HTTP_TIMEOUT': '5'}}")
    secret = [name for name, value in extra.items() if _is_secret(str(name), str(value))]
    if secret:
        raise XgfmError(
            f"gdal= holds {secret}, and what stands in gdal= is stored in the graph; set EARTHDATA_TOKEN, a netrc "
            "entry or these GDAL settings in the environment of the workers instead"
        )
    return {**GDAL_SETTINGS, **{name: str(value) for name, value in extra.items()}}


def _is_secret(name: str, value: str) -> bool:
    named = bool(_SECRET.search(name)) and name != "VSICURL_PC_SAS_TOKEN_URL"
    return named or bool(_SECRET_VALUE.search(value))


def gdal_path(href: str) -> str:
    """Return what GDAL opens for an asset's href: for a Planetary Computer file, a path that GDAL signs by itself."""
    parts = urlsplit(href)
    if parts.scheme not in ("http", "https"):
        return href
    if not is_host(parts.hostname, PLANETARY_COMPUTER_HOSTS):
        return f"/vsicurl/{href}"
    collection = "hls2-s30" if "/S30/" in parts.path else "hls2-l30"
    return f"/vsicurl?pc_url_signing=yes&pc_collection={collection}&url={quote(href, safe=':/')}"


def read(href: str, action: Callable[[], T], *, item: str, asset: str) -> T:
    """Run a read with this process's credentials for it, and turn what fails into a `ReadError`.

    Parameters
    ----------
    href : str
        Of the asset.
    action : callable
        Opens and reads `gdal_path` of the href, in this thread.
    item, asset : str
        Named in the error.

    Returns
    -------
    object
        What the action returns.

    Raises
    ------
    ReadError
        With item, asset and reason. It carries no signature, and no other exception that might.
    """
    import rasterio
    from rasterio.errors import RasterioError

    path = gdal_path(href)
    settings = _credentials(href)
    if path in _failed:
        settings["CPL_VSIL_CURL_NON_CACHED"] = path
    try:
        with rasterio.Env(**settings):
            result = action()
    except (RasterioError, OSError, RuntimeError, ValueError) as error:
        reason = _plain_reason(error)
        hint = "" if isinstance(error, XgfmError) else _hint(href, reason)  # ours says what mends it
    else:
        _failed.discard(path)
        return result
    _failed.add(path)
    # Raised outside of the handler, so that the original, which may quote a signed href, is not its context.
    raise ReadError(f"cannot read asset {asset!r} of item {item!r} ({redacted(href)}): {reason}{hint}")


def _credentials(href: str) -> dict[str, str]:
    """GDAL settings that let this process read an href: looked up now, in this process's environment."""
    if not is_host(urlsplit(href).hostname, EARTHDATA_HOSTS):
        return {}
    token = os.environ.get("EARTHDATA_TOKEN")
    if token:
        return {"GDAL_HTTP_AUTH": "BEARER", "GDAL_HTTP_BEARER": token}
    netrc = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    if not netrc.exists():
        return {}
    cookies = _cookie_file(os.getpid())
    return {
        "GDAL_HTTP_NETRC": "YES",
        "GDAL_HTTP_NETRC_FILE": str(netrc),
        "GDAL_HTTP_COOKIEFILE": cookies,
        "GDAL_HTTP_COOKIEJAR": cookies,
    }


@functools.cache
def _cookie_file(pid: int) -> str:
    """Return this process's own cookie file: the Earthdata login is a chain of redirects that only cookies hold."""
    handle, name = tempfile.mkstemp(prefix=f"xgfm-cookies-{pid}-")
    os.close(handle)
    atexit.register(Path(name).unlink, missing_ok=True)
    return name


def _plain_reason(error: BaseException) -> str:
    """What went wrong, from the innermost error: libraries wrap GDAL's own words."""
    while error.__cause__ is not None:
        error = error.__cause__
    return redacted(str(error)).rstrip(".") or type(error).__name__


def _hint(href: str, reason: str) -> str:
    """Say what mends a failed read."""
    refused = re.search(r"\b40[139]\b", reason)
    not_a_file = "not recognized" in reason
    if (refused or not_a_file) and is_host(urlsplit(href).hostname, EARTHDATA_HOSTS):
        return (
            ". The Earthdata login failed: set EARTHDATA_TOKEN, or a netrc entry for urs.earthdata.nasa.gov, in the "
            "environment of the workers, and accept LP DAAC's application once in your Earthdata profile"
        )
    if "404" in reason or "No such file" in reason:
        return ". The file is not there: leave the item out, or search again"
    if is_local(href):
        return ". The file is damaged, cut off or no raster: write or fetch it anew, or leave the item out"
    if refused:
        return ". Access is denied, or a token has expired: check the credentials in the environment of the workers"
    if not_a_file:
        return ". The server sent something that is not a raster, a login page perhaps"
    return ". Reading again may help: the same cube can be computed once more"
