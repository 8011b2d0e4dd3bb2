"""Every file of reference outputs is the parameter of a test."""

from __future__ import annotations

from pathlib import Path

from . import test_layouts, test_mae, test_mmseg, test_peer_tiling, test_pixelwise


def test_every_reference_file_is_compared(parity: Path) -> None:
    compared = {test_layouts.FILE}
    for module in (test_mae, test_mmseg, test_peer_tiling, test_pixelwise):
        for name, test in vars(module).items():
            if name.startswith("test_"):
                compared |= {value for mark in test.pytestmark if mark.args[0] == "file" for value in mark.args[1]}
    assert compared == {path.stem for path in parity.iterdir() if path.suffix in (".safetensors", ".json")}
