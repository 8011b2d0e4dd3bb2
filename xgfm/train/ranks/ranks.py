"""Processes that train together: which of them this one is, and what they add up.

In: what torchrun, Slurm or `launch` says of this process. Out: `Ranks`, as long as the context is open; a process that
nobody started together with others is the only one. Nothing is lazy.

A rank whose peer dies gets an error from the next sum: at once where the peer's machine still answers, within
`PATIENCE` in any case.
"""

from __future__ import annotations

import os
import re
import socket
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address

import torch

# Its functions have the group that there is when they are imported as a default, and torch imports them for its first
# parallel module: that group would live until the interpreter ends, where its threads may abort the process.
import torch.distributed.nn.functional
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous as meet

from xgfm.errors import ClusterError
from xgfm.infer.device import pick

PATIENCE = timedelta(minutes=10)
"""How long a rank waits for the others, at the start and in each sum, before that is an error."""
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""What carries sums between processes. Beside GPUs there is one for what lies in ordinary memory."""
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_NOWHERE = "192.0.2.1"
"""An address of documentation (RFC 5737), to which nothing is sent: it shows the way out of this machine."""
_PORTS = range(15000, 31000)
"""Of Slurm's jobs: below the ports that systems give away themselves."""


@dataclass(frozen=True)
class Rendezvous:
    """Where ranks find each other, and which of them this one is."""

    rank: int
    """Counted from 0, over all machines."""
    world: int
    """How many there are."""
    local_rank: int
    """Counted from 0, on this machine: the number of its GPU."""
    host: str
    """Of rank 0, as the others reach it."""
    port: int
    """Free on that host."""
    machines: int = 1
    """How many there are, at least."""
    told: bool = False
    """Whether the environment says it, so that who wrote it may hold the port."""
    attempt: int = 0
    """How often torchrun has started the ranks anew. It keeps their addresses, of which the old ones are wrong."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ClusterError(
                f"rank {self.rank} of {self.world} ranks; expected 0 to {self.world - 1}: see RANK and WORLD_SIZE"
            )

    @property
    def url(self) -> str:
        """What torch calls an init method."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return "env://" if self.told else f"tcp://{host}:{self.port}"


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, seen from one of them."""

    rank: int = 0
    """This one, counted from 0."""
    world: int = 1
    """How many there are."""
    local_rank: int = 0
    """This one, counted on its machine."""
    device: str = "cpu"
    """Where this one computes."""

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return the sum over the ranks, each of which must call this; a single rank gets its own tensor back."""
        if self.world == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            dist.barrier()


_PRESENT: ContextVar[Ranks | None] = ContextVar("ranks", default=None)
"""What this thread is part of. Another thread of the process may train something else, alone."""


@contextmanager
def joined(place: Rendezvous | None = None, *, device: str | None = None) -> Iterator[Ranks]:
    """Join the other ranks for as long as the context is open.

    Inside such a context another one gives the same ranks again.

    Parameters
    ----------
    place
        Which rank this is; as the environment says (`rendezvous`) where not given.
    device
        ``"cpu"`` or ``"cuda"``; GPUs where there are any, by default. With several ranks on a machine each one takes
        the GPU of its own number.

    Yields
    ------
    Ranks

    Raises
    ------
    ClusterError
        The ranks do not find each other, or a device is given that they would share.
    """
    present = _PRESENT.get()
    if present is not None:
        yield present
        return
    place = rendezvous() if place is None else place
    if place is None or place.world == 1:
        ranks = Ranks(device=pick(device))
    else:
        ranks = Ranks(place.rank, place.world, place.local_rank, _own_device(device, place.local_rank))
    with _group(ranks, place):
        token = _PRESENT.set(ranks)
        try:
            yield ranks
        finally:
            _PRESENT.reset(token)


@contextmanager
def _group(ranks: Ranks, place: Rendezvous | None) -> Iterator[None]:
    """Torch's process group: made, and left in order or, after an error, at once."""
    if place is None or ranks.world == 1:
        yield
        return
    with _over(interface_to(place.host, place.machines)):
        _join(ranks, place)
        try:
            yield
            dist.barrier()  # rank 0 holds the address book: it leaves when nobody needs it any more
        except BaseException as error:
            if dist.group.WORLD is not None:
                dist.group.WORLD.abort()  # peers get an error instead of waiting
            _forget(error)
            raise
        finally:
            dist.destroy_process_group()


def _forget(error: BaseException | None) -> None:
    """Let an error hold nothing of the functions that it came out of.

    A module that adds up gradients would be freed after the group is left, and the group with it: Python stands still
    meanwhile, and a thread of the group that waits for Python is waited for.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _join(ranks: Ranks, place: Rendezvous) -> None:
    device = torch.device(ranks.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, _, _ = next(meet(place.url, place.rank, place.world, timeout=PATIENCE))
        dist.init_process_group(
            BACKENDS[device.type],
            store=PrefixStore(f"attempt-{place.attempt}", store),
            rank=place.rank,
            world_size=place.world,
            timeout=PATIENCE,
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError, OSError) as error:
        said = str(error).splitlines()[0]
        raise ClusterError(
            f"rank {place.rank} of {place.world} on {socket.gethostname()} does not find the others at "
            f"{place.host}:{place.port} ({said}). Every rank must be started, and must reach that address: set "
            "MASTER_ADDR and MASTER_PORT, and GLOO_SOCKET_IFNAME where a machine has several networks"
        ) from error


def _own_device(device: str | None, local_rank: int) -> str:
    """Return a rank's own device; a worker that sees one GPU has that one."""
    kind = torch.device(pick(device))
    if kind.index is not None:
        raise ClusterError(
            f"device={device!r} for several ranks, which would share it; give device={kind.type!r}: each takes its own"
        )
    if kind.type not in BACKENDS:
        raise ClusterError(f"device={device!r} for several ranks; expected one of {list(BACKENDS)}")
    count = torch.cuda.device_count() if kind.type == "cuda" else 0
    if count > 1 and local_rank >= count:
        raise ClusterError(
            f"local rank {local_rank}, but this machine shows {count} GPUs; start {count} ranks on it, or device='cpu'"
        )
    return f"cuda:{local_rank if count > 1 else 0}" if kind.type == "cuda" else kind.type


def rendezvous(environment: Mapping[str, str] | None = None) -> Rendezvous | None:
    """Return which rank this process was started as; None where it was started alone.

    Parameters
    ----------
    environment
        ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``, as torchrun sets them; else those
        of a task that ``srun`` started, where rank 0 is on the first node of the step and the port follows from the
        job's number.

    Raises
    ------
    ClusterError
        It says something that cannot be.
    """
    given = os.environ if environment is None else environment
    if "RANK" in given and "WORLD_SIZE" in given:
        return _of_torchrun(given)
    if int(given.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in given:
        return _of_srun(given)
    return None


def _of_torchrun(given: Mapping[str, str]) -> Rendezvous:
    world = int(given["WORLD_SIZE"])
    missing = [name for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in given]
    if missing and world > 1:
        raise ClusterError(
            f"WORLD_SIZE is {world}, but {missing} are not set; start the ranks by torchrun or srun, or set them"
        )
    local = int(given.get("LOCAL_WORLD_SIZE", str(world)))
    shared = given.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shared and world > local and int(given.get("TORCHELASTIC_MAX_RESTARTS", "0")) and given["RANK"] == "0":
        # Each machine counts on its own how often it has restarted: see pytorch issues 135712 and 167288.
        warnings.warn(
            "torchrun on several machines gives ranks that it starts again the addresses of dead ones; set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where torchrun is started",
            stacklevel=2,
        )
    return Rendezvous(
        rank=int(given["RANK"]),
        world=world,
        local_rank=int(given.get("LOCAL_RANK", "0")),
        host=given.get("MASTER_ADDR", "127.0.0.1"),
        port=int(given.get("MASTER_PORT", "0")),
        machines=-(-world // local),
        told=True,
        attempt=int(given.get("TORCHELASTIC_RESTART_COUNT", "0")) if shared and world == local else 0,
    )


def _of_srun(given: Mapping[str, str]) -> Rendezvous:
    job, step = int(given.get("SLURM_JOB_ID", "0")), int(given.get("SLURM_STEP_ID", "0"))
    port = _PORTS[(job * 101 + step) % len(_PORTS)]
    return Rendezvous(
        rank=int(given["SLURM_PROCID"]),
        world=int(given["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(given.get("SLURM_LOCALID", "0")),
        host=given.get("MASTER_ADDR") or first_host(given.get("SLURM_STEP_NODELIST", "127.0.0.1")),
        port=int(given.get("MASTER_PORT", port)),
        machines=int(given.get("SLURM_STEP_NUM_NODES", "1")),
    )


def first_host(nodes: str) -> str:
    """Return the first name of a list of Slurm's: of ``"gpu[007-009,12],login1"`` it is ``"gpu007"``.

    Raises
    ------
    ClusterError
        It is no such list.
    """
    found = re.match(r"([^\[\],]*)(?:\[(\w+)[\w,-]*\]([^\[\],]*))?(?:,|$)", nodes)
    if not found or not found[0].strip(","):
        raise ClusterError(f"list of nodes {nodes!r} of SLURM_STEP_NODELIST is not understood; set MASTER_ADDR")
    return "".join(part or "" for part in found.groups())


def interface_to(host: str, machines: int = 1) -> str | None:
    """Return the name of the network interface over which a host is reached; None where that is not known.

    Torch would take the one that this machine's own name stands for, which on many clusters is the wrong one, and on
    Debian's none that another machine could reach.
    """
    import psutil

    try:
        own = _own_address(host)
        if machines > 1 and ip_address(own).is_loopback:  # this is rank 0, and the name is its own
            own = _own_address(_NOWHERE)
    except OSError:
        return None
    named = psutil.net_if_addrs().items()
    return next((name for name, addresses in named if own in (a.address.split("%")[0] for a in addresses)), None)


def _own_address(host: str) -> str:
    """Return this machine's address on the way to another one. No packet is sent."""
    family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


@contextmanager
def _over(interface: str | None) -> Iterator[None]:
    """Say which interface is meant, where the environment does not."""
    mine = [name for name in _INTERFACES if interface and name not in os.environ]
    os.environ.update(dict.fromkeys(mine, interface or ""))
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)
