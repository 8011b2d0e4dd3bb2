"""What tests let ranks do: functions that other processes import, and ways to start those processes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xgfm.errors import TrainError
from xgfm.train.norm import synchronised
from xgfm.train.ranks import Ranks, Rendezvous, joined


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(function: Callable[..., Any], folder: Path, world: int, *args: Any) -> list[Any]:
    """Call a function with its ranks, in processes of this machine; return what each of them returned."""
    torch.multiprocessing.spawn(_spawned, (function, str(folder), world, free_port(), args), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _spawned(rank: int, function: Callable[..., Any], folder: str, world: int, port: int, args: Any) -> None:
    torch.set_num_threads(1)
    with joined(Rendezvous(rank, world, rank, "127.0.0.1", port), device="cpu") as ranks:
        torch.save(function(ranks, *args), Path(folder) / f"{rank}.pt")


def norm_of_the_whole(count: int) -> dict[str, Any]:
    """Output, gradients and state of torch's own batch norm, twice over."""
    return _norm(nn.BatchNorm2d(3).double(), slice(0, count), count)


def norm_of_a_share(ranks: Ranks, shares: tuple[int, ...]) -> dict[str, Any]:
    """The same of one rank's part of the batch."""
    start = sum(shares[: ranks.rank])
    return _norm(synchronised(nn.BatchNorm2d(3).double()), slice(start, start + shares[ranks.rank]), sum(shares))


def _norm(norm: nn.Module, part: slice, count: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(7)
    x, owed, scale = (torch.randn(count, 3, 4, 5, generator=draw, dtype=torch.float64) for _ in range(3))
    mine: Tensor = x[part].clone().requires_grad_()
    out = norm(norm(mine * 3 + 2) * scale[part])
    (out * owed[part]).sum().backward()
    return {
        "out": out.detach(),
        "gradient": mine.grad,
        "weights": [p.grad for p in norm.parameters()],
        "state": dict(norm.state_dict()),
    }


@dataclass(frozen=True)
class Fault:
    """What happens to one rank before one step, the first time or always."""

    rank: int
    step: int
    how: Callable[[], None]
    marker: str
    """File that the fault leaves, with the process's id, one line for each time."""
    once: bool = True

    def __call__(self, rank: int, step: int) -> None:
        marker = Path(self.marker)
        if (rank, step) != (self.rank, self.step) or (self.once and marker.exists()):
            return
        with marker.open("a") as file:
            file.write(f"{os.getpid()}\n")
        self.how()

    @property
    def pids(self) -> list[int]:
        """Processes that it has struck, in order."""
        return [int(line) for line in Path(self.marker).read_text().splitlines()]


def count_up(ranks: Ranks, folder: str, steps: int, fault: Fault | None = None) -> dict[str, int]:
    """Train as simply as can be: each step is a sum over the ranks, and rank 0 writes down which one it was."""
    checkpoint = Path(folder, "step")
    began = int(checkpoint.read_text()) if checkpoint.exists() else 0
    total = 0.0
    for step in range(began, steps):
        if fault is not None:
            fault(ranks.rank, step)
        total = float(ranks.all_reduce_sum(torch.ones(())))
        if ranks.rank == 0:
            partial = checkpoint.with_suffix(".partial")
            partial.write_text(str(step + 1))
            partial.replace(checkpoint)
        ranks.barrier()
    return {"began": began, "steps": steps, "world": ranks.world, "sum": int(total), "pid": os.getpid()}


def dies(message: str = "one rank alone has failed") -> None:
    """Fail as a program does."""
    raise ArithmeticError(message)


def refuses() -> None:
    """Fail as this package does."""
    raise TrainError("the loss is not a number; chips 3, 8")


def breaks_the_connection() -> None:
    """Fail as torch does where a network is."""
    raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.7]:2412")


def sleeps() -> None:
    """Hang, in a rank alone: its worker answers."""
    time.sleep(600)


def two_faults(ranks: Ranks, first: Fault, second: Fault) -> None:
    """Let two ranks come to grief in the same step."""
    for fault in (first, second):
        fault(ranks.rank, fault.step)
