"""Where weights are, and whether they are the right ones.

In: a source, a short string that any machine can resolve. Out: a local file, fetched once into the Hub's cache, with
its digest. Nothing is opened here, and torch is not imported.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path

from xgfm.errors import CheckpointError, MissingExtraError
from xgfm.models.spec import WeightsSource

BUNDLED = Path(__file__).parent / "bundled"
"""Folders of weights that come with the package."""
WEIGHTS_FILE = "model.safetensors"
DOMAIN_FILE = "domain.safetensors"


def hub_source(weights: WeightsSource) -> str:
    """Return the source of published weights: ``hub:owner/name/file@revision``."""
    return f"hub:{weights.repo}/{weights.filename}@{weights.revision}"


def _hub_parts(source: str) -> tuple[str, str, str]:
    place, _, revision = source.removeprefix("hub:").rpartition("@")
    owner, name, filename = place.split("/", 2)
    return f"{owner}/{name}", filename, revision


def local_file(source: str) -> Path:
    """Return the local file of a source; published weights are downloaded where the cache has none.

    Parameters
    ----------
    source
        ``hub:owner/name/file@revision``, ``bundled:name`` or ``file:/path``.

    Returns
    -------
    Path

    Raises
    ------
    CheckpointError
        When there is no such file here, or it cannot be downloaded.
    """
    kind, _, place = source.partition(":")
    if kind == "hub":
        return _from_hub(source)
    path = BUNDLED / place / WEIGHTS_FILE if kind == "bundled" else Path(place)
    if not path.is_file():
        raise CheckpointError(
            f"no weights at {path} on this machine; put them where every worker sees them, or give the path of a copy"
        )
    return path


def beside(source: str, name: str) -> Path:
    """Return the local file of another name that stands beside weights; raises as `local_file`."""
    if source.startswith("hub:"):
        repo, filename, revision = _hub_parts(source)
        return _from_hub(f"hub:{repo}/{filename.removesuffix(WEIGHTS_FILE)}{name}@{revision}")
    path = local_file(source).with_name(name)
    if not path.is_file():
        raise CheckpointError(f"no {name} beside the weights at {path.parent}; copy the whole folder of a task")
    return path


def is_cached(source: str) -> bool:
    """Tell whether the weights of a source are on this machine. Nothing is downloaded."""
    if not source.startswith("hub:"):
        return True
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    repo, filename, revision = _hub_parts(source)
    return isinstance(try_to_load_from_cache(repo, filename, revision=revision), str)


def hub_file(repo: str, filename: str, revision: str) -> tuple[Path, str]:
    """Return a file of a repository of the Hub, as it is there now, and the commit that it is of.

    Where the Hub cannot be reached, it is the file that the cache holds for this revision. A file of a commit does not
    change, so the Hub is not asked for one that the cache holds.

    Raises
    ------
    CheckpointError
        When there is no such repository, revision or file, or none in the cache without a network.
    """
    fixed = re.fullmatch(r"[0-9a-f]{40}", revision) is not None
    path = _from_hub(f"hub:{repo}/{filename}@{revision}") if fixed else _download(repo, filename, revision)
    return path, path.parent.name  # the cache keeps a folder for each commit


def _from_hub(source: str) -> Path:
    _hub_package(source)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, filename, revision = _hub_parts(source)
    try:  # the cache first: many workers must not each ask the Hub
        return Path(hf_hub_download(repo, filename, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return _download(repo, filename, revision)


def _download(repo: str, filename: str, revision: str) -> Path:
    _hub_package(f"{filename} of {repo}")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, filename, revision=revision))
    except Exception as error:  # connection, proxy, disk, 401, 404: many classes of three packages
        raise CheckpointError(
            f"{filename} of {repo} is not in the cache and cannot be downloaded "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}). Fetch it from "
            f"https://huggingface.co/{repo} elsewhere, and give the path of the file instead of the name"
        ) from error


def _hub_package(need: str) -> None:
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("huggingface-hub", "torch", f"downloading {need}") from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; computed once as long as the file does not change."""
    facts = path.stat()
    return _sha256(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=64)
def _sha256(path: Path, modified: int, size: int) -> str:  # noqa: ARG001
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_digest(path: Path, expected: str) -> None:
    """Refuse a file of another digest than expected, before anything opens it.

    Raises
    ------
    CheckpointError
        With both digests.
    """
    found = sha256_of(path)
    if found != expected:
        raise CheckpointError(
            f"{path.name} has SHA-256 {found}, expected {expected}: it is damaged or another version. Delete it and "
            "fetch it again; for weights of your own that share a published name, give the task's record with spec="
        )
