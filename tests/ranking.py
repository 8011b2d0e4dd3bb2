"""What tests let ranks do: functions that other processes import, and ways to start those processes."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import breaking
import field_chips
import small
import torch
from distributed import WorkerPlugin
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from xgfm.errors import TrainError
from xgfm.models.build import build_task
from xgfm.models.spec import to_json
from xgfm.train.__main__ import main as train_main
from xgfm.train.loop.losses import IGNORE, Losses
from xgfm.train.loop.stepping import Stepper
from xgfm.train.ranks.norm import synchronised
from xgfm.train.ranks.ranks import Ranks, Rendezvous, joined
from xgfm.train.settings import TrainSettings


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


CHIPS = 7
"""Of the batch: no number of ranks but 1 and 7 cuts it evenly."""


def _network() -> nn.Module:
    torch.manual_seed(0)
    return build_task(small.task({**small.UNET, "head": {}})).train()


def _batch() -> tuple[Tensor, Tensor]:
    """Most pixels have no label, and the first chips have fewer than the others."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(CHIPS, 6, 3, 32, 32, generator=draw)
    label = torch.randint(0, 3, (CHIPS, 32, 32), generator=draw, dtype=torch.uint8)
    known = torch.rand(label.shape, generator=draw) < torch.linspace(0.02, 0.6, CHIPS)[:, None, None]
    return x, torch.where(known, label, IGNORE)


def gradients(ranks: Ranks) -> dict[str, Tensor]:
    """Return the gradient of one batch, with respect to each weight of an encoder with a UNet of batch norms."""
    module = _network()
    model = DistributedDataParallel(synchronised(module)) if ranks.world > 1 else module
    x, label = (values.tensor_split(ranks.world)[ranks.rank] for values in _batch())
    losses = Losses({"cross_entropy": 1.0, "dice": 0.5}, "segmentation", (0.2, 1.0, 3.0))
    weights = ranks.all_reduce_sum(losses.weights(label, 3))
    (losses.together(losses.sums(model(x, None, None), label), weights) * ranks.world).backward()
    return _gradients_of(module)


def naive_mean() -> dict[str, Tensor]:
    """Return what two ranks would agree on that know nothing of each other but their gradients."""
    halves = []
    for x, label in zip(*(values.tensor_split(2) for values in _batch()), strict=True):
        module = _network()
        losses = Losses({"cross_entropy": 1.0, "dice": 0.5}, "segmentation", (0.2, 1.0, 3.0))
        losses.together(losses.sums(module(x, None, None), label), losses.weights(label, 3)).backward()
        halves.append(_gradients_of(module))
    return {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}


def _gradients_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return how far gradients are from others, as a share of the size of these."""
    assert list(found) == list(expected)
    apart = sum(float((found[name].double() - expected[name].double()).square().sum()) for name in expected)
    size = sum(float(values.double().square().sum()) for values in expected.values())
    return float((apart / size) ** 0.5)


STEPS, EVERY = 6, 2
"""Of a training: steps, and those from one checkpoint to the next."""


def training(folder: Path, name: str, **changes: Any) -> TrainSettings:
    """Return the settings of a short training on chips in ``folder``, which are written where there are none."""
    chips = folder / "chips.zarr"
    if not chips.exists():
        field_chips.write_small_chips(chips)
    spec = small.task({**small.UNET, "head": {}}, frames=2, model=small.model(frames=2))
    kept: dict[str, Any] = {
        "chips": str(chips),
        "folder": str(folder / name),
        "base": {"kind": "task", "spec": to_json(spec)},
        "method": "scratch",
        "batch_size": 6,
        "steps": STEPS,
        "every": EVERY,
        "loss": {"cross_entropy": 1.0, "dice": 0.5},
        "class_weights": [0.5, 1.0, 2.0],
        "precision": "fp32",
        "device": "cpu",
        "seed": 5,  # of 3 and 6 a value lies at the kink of a ReLU: sums in another order give another gradient there
    }
    return TrainSettings(**{**kept, **changes})


def strike(fault: Fault) -> None:
    """Let a fault strike the trainer of this process before a step."""
    take = Stepper.take

    def struck(self: Stepper, step: int, *args: Any) -> Any:
        fault(self.ranks.rank, step)
        return take(self, step, *args)

    Stepper.take = struck  # type: ignore[method-assign]


@dataclass
class Strike(WorkerPlugin):
    """Let a fault strike the trainers of a cluster."""

    fault: Fault
    name: str = "strike"

    def setup(self, worker: Any) -> None:
        strike(self.fault)


def threads_are_gone() -> None:
    """Fail where threads of a process group are left."""
    names = [comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")]  # of threads, on Linux
    if kept := [name for name in names if "gloo" in name]:
        raise SystemExit(f"threads outlive the group that they belong to: {kept}")


def watch_parting() -> None:
    """Let a rank fail that keeps something of the group when it leaves it.

    What is freed later frees the group, and waits for its threads, which may wait for Python: for ever.
    """
    leave = dist.destroy_process_group

    def left() -> None:
        leave()
        threads_are_gone()

    dist.destroy_process_group = left


def main(what: str, path: str, *which: str) -> None:
    """Be a rank that torchrun or srun has started; ``which``: a rank and a step, at which it comes to grief once."""
    torch.set_num_threads(1)
    if what in ("train", "train-and-fail"):
        watch_parting()
        how = breaking.kill if what == "train" else dies
        strike(Fault(int(which[0]), int(which[1]), how, f"{path}.struck"))
        sys.exit(train_main([path]))
    with joined(device="cpu") as here:
        if what == "gradients":
            torch.save(gradients(here), Path(path) / f"{here.rank}.pt")
        else:
            rank, step = map(int, which)
            done = count_up(here, path, step + 3, Fault(rank, step, breaking.kill, str(Path(path) / "struck")))
            Path(path, f"done-{here.rank}.json").write_text(json.dumps(done))
    threads_are_gone()


if __name__ == "__main__":
    main(*sys.argv[1:])
