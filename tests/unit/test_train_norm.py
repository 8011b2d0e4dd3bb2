"""Batch norm over ranks: torch's own batch norm of the whole batch is the oracle."""

from __future__ import annotations

import copy
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import ranking
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import distributed as dist
from torch import nn

from xgfm.train.ranks.norm import SynchronisedNorm, plain, synchronised

KINDS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
SHAPES = {2: (), 3: (5,), 4: (3, 4), 5: (2, 3, 2)}


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A process group of this process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dims=st.sampled_from(sorted(KINDS)),
    batch=st.integers(2, 5),
    affine=st.booleans(),
    tracked=st.booleans(),
    momentum=st.sampled_from([None, 0.1, 0.7]),
    training=st.booleans(),
    offset=st.sampled_from([0.0, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_of_one_rank_it_is_torchs_own(
    dims: int,
    batch: int,
    affine: bool,
    tracked: bool,
    momentum: float | None,
    training: bool,
    offset: float,
    seed: int,
    alone: None,
) -> None:
    draw = torch.Generator().manual_seed(seed)
    norm = KINDS[dims](3, affine=affine, track_running_stats=tracked, momentum=momentum).double()
    for parameter in norm.parameters():
        parameter.data = torch.randn(3, generator=draw, dtype=torch.float64)
    own = synchronised(copy.deepcopy(norm))
    assert type(own) is SynchronisedNorm
    for module in (norm, own):
        module.train(training)
    for _ in range(2):  # the second time, running statistics are not those of the start
        x = offset + torch.randn(batch, 3, *SHAPES[dims], generator=draw, dtype=torch.float64)
        owed = torch.randn(x.shape, generator=draw, dtype=torch.float64)
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        a, b = own(mine), norm(theirs)
        (a * owed).sum().backward()
        (b * owed).sum().backward()
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-9)
    for (name, p), q in zip(own.named_parameters(), norm.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-9, msg=name)
    torch.testing.assert_close(own.state_dict(), norm.state_dict(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_exact_to_their_format_whatever_the_input_is(dtype: torch.dtype, alone: None) -> None:
    """Values far from 0: the difference of two large sums would be noise."""
    draw = torch.Generator().manual_seed(0)
    x = (1000 + 8 * torch.randn(8, 4, 16, 16, generator=draw)).to(dtype)
    norm = nn.BatchNorm2d(4)
    out = synchronised(copy.deepcopy(norm))(x)
    assert out.dtype is dtype
    exact = copy.deepcopy(norm).double()(x.double())
    assert (out.double() - exact).abs().max() < (2e-4 if dtype is torch.float32 else 2e-2)


@pytest.mark.parametrize("shares", [(4, 4), (5, 2, 1), (6, 0)], ids=str)
def test_several_ranks_give_what_one_process_gives(shares: tuple[int, ...], tmp_path: Path) -> None:
    found = ranking.spawn(ranking.norm_of_a_share, tmp_path, len(shares), shares)
    whole = ranking.norm_of_the_whole(sum(shares))
    torch.testing.assert_close(torch.cat([f["out"] for f in found]), whole["out"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.cat([f["gradient"] for f in found]), whole["gradient"], rtol=1e-7, atol=1e-12)
    for f in found:  # of weights: those of a rank's own samples, to be added up as all others are
        torch.testing.assert_close(f["state"], whole["state"], rtol=1e-9, atol=1e-12)
    added = [sum(f["weights"][i] for f in found) for i in range(2)]
    torch.testing.assert_close(added, whole["weights"], rtol=1e-7, atol=1e-12)


def network() -> nn.Sequential:
    inner = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm3d(3, momentum=None))
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, eps=1e-3), nn.LayerNorm(3), inner)


def test_a_checkpoint_does_not_tell_how_many_ranks_there_were() -> None:
    module = network()
    before, parameters = module.state_dict(), list(module.parameters())
    assert synchronised(module) is module
    assert [type(m) for m in module.modules()].count(SynchronisedNorm) == 3
    after = module.state_dict()
    assert list(after) == list(before)
    assert all(after[name].data_ptr() == before[name].data_ptr() for name in before)
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))  # an optimiser's still


def test_it_is_undone() -> None:
    module, twin = network(), network()
    module[3].eval()
    back = plain(synchronised(module))
    assert back is module
    assert str(back) == str(twin)  # kinds and their options
    assert [m.training for m in back.modules()] == [True] * 4 + [False] * 3
    assert back.load_state_dict(twin.state_dict()).missing_keys == []


def test_a_norm_itself_and_one_that_is_not_torchs_own() -> None:
    class Own(nn.BatchNorm2d):
        """Somebody's own: not ours to replace."""

    assert type(plain(synchronised(nn.BatchNorm2d(2)))) is nn.BatchNorm2d
    own = Own(2)
    assert synchronised(own) is own


def test_frozen_statistics_need_no_other_rank() -> None:
    norm = synchronised(nn.BatchNorm2d(2)).eval()  # no process group: a sum would fail
    x = torch.randn(2, 2, 3, 3)
    torch.testing.assert_close(norm(x), x, rtol=1e-4, atol=1e-4)


def test_an_input_without_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(B, C, \.\.\.\)"):
        synchronised(nn.BatchNorm2d(2)).eval()(torch.zeros(2))
