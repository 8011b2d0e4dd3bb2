"""Which rank a process is: by what torchrun and Slurm say, and by nobody's word."""

from __future__ import annotations

import socket
import warnings
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xgfm.errors import ClusterError
from xgfm.train.ranks import ranks
from xgfm.train.ranks.ranks import Ranks, Rendezvous, first_host, interface_to, joined, rendezvous

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
}
names = st.from_regex(r"[a-z]{1,6}-?", fullmatch=True)


def test_a_process_that_nobody_started_with_others_is_alone() -> None:
    assert rendezvous({}) is None
    with joined(device="cpu") as here:
        assert here == Ranks(rank=0, world=1, local_rank=0, device="cpu")
        values = torch.arange(3.0)
        assert here.all_reduce_sum(values) is values
        here.barrier()
        assert not torch.distributed.is_initialized()


def test_torchrun_says_which_rank_it_is() -> None:
    place = rendezvous(TORCHRUN)
    assert place == Rendezvous(5, 8, 1, "node7", 29500, machines=2, told=True)
    assert place.url == "env://"


ELASTIC = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_RESTART_COUNT": "2"}


def test_ranks_that_torchrun_starts_again_do_not_read_what_the_dead_have_written() -> None:
    place = rendezvous({**TORCHRUN, **ELASTIC, "LOCAL_WORLD_SIZE": "8"})
    assert place is not None
    assert (place.machines, place.attempt) == (1, 2)


def test_torchrun_on_several_machines_is_told_how_to_start_ranks_again() -> None:
    with pytest.warns(UserWarning, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        place = rendezvous({**TORCHRUN, **ELASTIC, "RANK": "0"})
    assert place is not None
    assert place.attempt == 0  # machines may count differently
    with warnings.catch_warnings(action="error"):
        rendezvous({**TORCHRUN, **ELASTIC})  # said once, by rank 0
        rendezvous({**TORCHRUN, **ELASTIC, "RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "False"})


def test_srun_says_which_rank_it_is() -> None:
    place = rendezvous(SRUN)
    assert place is not None
    assert (place.rank, place.world, place.local_rank, place.machines) == (3, 4, 1, 2)
    assert place.host == "gpu007"
    assert place.url == f"tcp://gpu007:{place.port}"


@given(job=st.integers(1, 2**31), step=st.integers(0, 50))
def test_every_task_of_a_step_finds_the_same_port_and_that_of_another_step_is_another(job: int, step: int) -> None:
    ports = {
        rendezvous({**SRUN, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step), "SLURM_PROCID": rank}).port  # type: ignore[union-attr]
        for rank in "0123"
    }
    (port,) = ports
    other = rendezvous({**SRUN, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step + 1)})
    assert other is not None
    assert 1024 < port < 32768 > other.port != port


def test_ranks_of_torchrun_are_not_mistaken_for_those_of_the_step_around_it() -> None:
    place = rendezvous({**SRUN, **TORCHRUN})
    assert place is not None
    assert place.world == 8


def test_the_script_of_a_slurm_job_is_no_rank() -> None:
    assert rendezvous({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) is None


def test_master_of_the_environment_wins_over_slurms_list() -> None:
    place = rendezvous({**SRUN, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "4000"})
    assert place is not None
    assert (place.host, place.port) == ("10.0.0.7", 4000)


@given(prefix=names, numbers=st.lists(st.integers(0, 999), min_size=1, unique=True), more=st.lists(names))
def test_the_first_host_of_a_list(prefix: str, numbers: list[int], more: list[str]) -> None:
    ranges = ",".join(f"{n:03d}-{n:03d}" if n % 2 else f"{n:03d}" for n in numbers)
    assert first_host(",".join([f"{prefix}[{ranges}]", *more])) == f"{prefix}{numbers[0]:03d}"
    assert first_host(",".join([f"{prefix}[{ranges}]-ib", *more])) == f"{prefix}{numbers[0]:03d}-ib"
    assert first_host(",".join([prefix, *more])) == prefix


@pytest.mark.parametrize("nodes", ["", "[", "a[1", ",a"])
def test_a_list_of_hosts_that_is_none(nodes: str) -> None:
    with pytest.raises(ClusterError, match="SLURM_STEP_NODELIST is not understood; set MASTER_ADDR"):
        first_host(nodes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RANK": "8"}, "rank 8 of 8 ranks; expected 0 to 7"),
        ({"RANK": "-1"}, "rank -1 of 8"),
    ],
)
def test_a_rank_that_cannot_be(changes: dict[str, str], said: str) -> None:
    with pytest.raises(ClusterError, match=said):
        rendezvous({**TORCHRUN, **changes})


@pytest.mark.parametrize("name", ["LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_an_environment_that_says_half(name: str) -> None:
    with pytest.raises(ClusterError, match=f"{name}.*not set; start the ranks by torchrun"):
        rendezvous({key: value for key, value in TORCHRUN.items() if key != name})


def addresses() -> list[tuple[str, str]]:
    """Every interface of this machine that is up, and its address."""
    return [
        (name, address.address)
        for name, found in psutil.net_if_addrs().items()
        for address in found
        if address.family == socket.AF_INET and psutil.net_if_stats()[name].isup
    ]


@pytest.mark.parametrize(("name", "address"), addresses())
def test_the_interface_is_the_one_that_has_the_address(name: str, address: str) -> None:
    assert interface_to(address) == name


def test_rank_0_of_several_machines_does_not_hide_behind_its_loopback() -> None:
    outward = interface_to("127.0.1.1", machines=2)
    assert interface_to("127.0.0.1") != outward or outward is None


def test_a_host_that_nobody_knows_is_no_interface() -> None:
    assert interface_to("no-such-host.invalid") is None


@pytest.mark.parametrize(
    ("device", "gpus", "local_rank", "own"),
    [("cpu", 4, 3, "cpu"), (None, 4, 3, "cuda:3"), ("cuda", 2, 1, "cuda:1"), ("cuda", 1, 3, "cuda:0")],
)
def test_each_rank_takes_the_gpu_of_its_number(
    device: str | None, gpus: int, local_rank: int, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert ranks._own_device(device, local_rank) == own


@pytest.mark.parametrize(
    ("device", "gpus", "said"),
    [
        ("cuda:1", 4, "would share it; give device='cuda'"),
        ("cuda", 2, "local rank 2, but .* 2 GPUs"),
        ("mps", 0, "mps"),
    ],
)
def test_a_device_that_ranks_cannot_have(device: str, gpus: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ClusterError, match=said):
        ranks._own_device(device, 2)


def test_peers_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "PATIENCE", ranks.timedelta(seconds=0.2))
    with (
        pytest.raises(ClusterError, match=r"rank 1 of 2 .* does not find the others at 127\.0\.0\.1:9 .*MASTER_ADDR"),
        joined(Rendezvous(1, 2, 1, "127.0.0.1", 9), device="cpu"),
    ):
        pytest.fail("it joined nobody")
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("name", ["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"])
def test_the_environment_is_left_as_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv(name, raising=False)
    with ranks._over("lo"):
        assert os.environ[name] == "lo"
    assert name not in os.environ
    monkeypatch.setenv(name, "ib0")
    with ranks._over("lo"):
        assert os.environ[name] == "ib0"
    assert os.environ[name] == "ib0"


def test_a_context_within_a_context_is_the_same_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    with joined(device="cpu") as outer:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")  # would wait for another one
        with joined() as inner:
            seen += [outer, inner]
    assert seen[0] is seen[1]
