"""Hrefs without secrets: what may stand in a graph, in a file of items and in a message.

In: the href of an asset, or a text that may hold one. Out: the plain href, or a refusal that does not repeat the
secret. Text only: nothing is opened.
"""

from __future__ import annotations

import re

from xgfm.errors import ItemError

PLANETARY_COMPUTER_HOSTS = ("hls2euwest.blob.core.windows.net",)
"""Hosts whose files GDAL signs on reading, so that a signature in an href is of no use."""

_REMOTE = re.compile(r"^/vsi|//", re.IGNORECASE)
_ADDRESS = re.compile(r"https?://(?P<host>[^/?#@]+)/[^?#]*", re.IGNORECASE)
_USERINFO = re.compile(r"//[^/?#]*@")


def is_host(host: str | None, known: tuple[str, ...]) -> bool:
    """Whether a host is one of some, or a subdomain of one."""
    return host is not None and any(host == name or host.endswith(f".{name}") for name in known)


def is_local(href: str) -> bool:
    """Whether an href is a file of this machine."""
    return href.startswith("file:") or not _REMOTE.search(href)


def unsigned(href: str) -> str:
    """Return an href without a Planetary Computer signature: reading signs again, and signatures are secrets.

    Of what else may be a secret no list is complete, so that a remote href, or one inside of a ``/vsi`` path, has no
    query, no fragment and no user at all.

    Raises
    ------
    ItemError
        If it has one. The message leaves it out.
    """
    if not _REMOTE.search(href):
        return href  # a local file, whose name may hold any sign
    found = _ADDRESS.match(href)
    if found and is_host(found["host"].lower(), PLANETARY_COMPUTER_HOSTS) and href[found.end() :].startswith("?"):
        return found[0]
    if not (_USERINFO.search(href) or "?" in href or "#" in href):
        return href
    raise ItemError(
        f"href {redacted(href)!r} is signed or holds a password or another query (left out here), which would be "
        "stored with the graph; give the plain href, credentials are looked up on reading"
    )


def redacted(text: str) -> str:
    """Return a text without the queries, fragments, users and passwords of the URLs in it."""
    text = re.sub(r"//[^\s'\"]*[?#][^\s'\"]*@[^\s'\")]*", "//", text)  # no telling which part is the secret
    text = re.sub(r"//[^\s'\"]*@", "//", text)
    return re.sub(r"(?<=\S)[?#][^\s'\")]+", "", text)
