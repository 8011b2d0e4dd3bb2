"""Comparison with stored outputs of the reference implementations, and a table of the largest errors at the end."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

TOLERANCES = {
    "exact": 0.0,
    "pos_embed, built size": 1e-6,
    "pos_embed, other size": 1e-5,
    "time and location": 1e-6,
    "features, latent": 2e-5,
    "MAE prediction": 5e-5,
    "loss": 1e-5,
    "necks, decoders, logits": 5e-5,
    "tiled output": 1e-5,
    "gradient (relative)": 1e-4,
}


@dataclass
class Reference:
    """One file of reference outputs."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, str]

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def json(self, name: str) -> Any:
        return json.loads(self.facts[name])


@pytest.fixture
def reference(parity: Path, request: pytest.FixtureRequest, record_property: Any) -> Reference:
    """The file that the test is parametrised with."""
    name = request.node.callspec.params["file"]
    record_property("parity file", name)
    with safe_open(parity / f"{name}.safetensors", "pt") as file:
        return Reference({key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {})  # noqa: SIM118


@pytest.fixture
def same(record_property: Any) -> Any:
    """``same(quantity, ours, theirs)``: assert equality within the quantity's tolerance and note the error."""

    def compare(quantity: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        assert ours.shape == theirs.shape
        error = (ours.detach().double() - theirs.double()).abs().max().item()
        if quantity.startswith("gradient"):
            error /= max(theirs.abs().max().item(), 1e-30)
        record_property("parity error", [quantity, error])
        assert error <= TOLERANCES[quantity], f"{quantity}: error {error:.2e}, allowed {TOLERANCES[quantity]:.0e}"

    return compare


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed, failed = set(), set()
    errors: dict[str, list[float]] = defaultdict(list)
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in getattr(report, "user_properties", ()):
                if name == "parity file" and report.when == "call":
                    (passed if outcome == "passed" else failed).add(value)
                elif name == "parity error" and report.when == "call":
                    errors[value[0]].append(value[1])
    if not passed | failed:
        return
    whole = passed - failed
    terminalreporter.section(f"parity: {len(whole)} of {len(passed | failed)} files passed")
    terminalreporter.write_line(f"{'quantity':<26}{'compared':>9}{'largest error':>15}{'tolerance':>11}")
    for quantity, tolerance in TOLERANCES.items():
        if values := errors.get(quantity):
            terminalreporter.write_line(f"{quantity:<26}{len(values):>9}{max(values):>15.1e}{tolerance:>11.0e}")
