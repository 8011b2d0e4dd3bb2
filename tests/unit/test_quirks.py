"""Input habits of single fine-tunes, against their description."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from xgfm.models.quirks import PlanesDateByDate, Resized, published_part


class Echo(nn.Module):
    """Keeps what it was given; its logits are the bands of the first frame."""

    def forward(self, x: Tensor, time: Tensor | None = None, location: Tensor | None = None) -> Tensor:
        self.given = (x, time, location)
        return x[:, :, 0]


def test_slot_of_band_and_frame_holds_the_plane_of_the_published_order() -> None:
    planes = torch.randn(1, 18, 4, 5)  # date by date
    x = torch.stack([planes[:, 6 * t : 6 * t + 6] for t in range(3)], dim=2)  # (B, band, date, H, W)
    echo = Echo()
    PlanesDateByDate(echo)(x)
    for band in range(6):
        for frame in range(3):
            assert torch.equal(echo.given[0][:, band, frame], planes[:, 3 * band + frame])


@given(st.sampled_from([256, 128, 64]), st.sampled_from([256, 192, 64]))
@settings(max_examples=9, deadline=None)
def test_resized_classes_are_the_enlarged_models_brought_back(rows: int, columns: int) -> None:
    torch.manual_seed(rows + columns)
    x, echo = torch.randn(1, 3, 2, rows, columns), Echo()
    classes = Resized(echo, window=256, resized=448)(x).argmax(1)
    larger = echo.given[0]
    assert larger.shape[-2:] == (rows * 7 // 4, columns * 7 // 4)
    expected = F.interpolate(x[:, :, 0], scale_factor=1.75, mode="bilinear", align_corners=False)
    assert torch.allclose(larger[:, :, 0], expected, atol=1e-5)
    official = F.interpolate(larger[:, :, 0].argmax(1)[:, None].float(), size=(rows, columns), mode="nearest")
    assert torch.equal(classes, official[:, 0].long())


def test_time_and_location_pass_through() -> None:
    time, location = torch.zeros(1, 2, 2), torch.zeros(1, 2)
    for quirk in (PlanesDateByDate(Echo()), Resized(Echo(), window=8, resized=16)):
        quirk(torch.zeros(1, 3, 2, 8, 8), time, location)
        assert published_part(quirk).given[1:] == (time, location)


def test_published_part_is_the_module_itself_without_a_quirk() -> None:
    echo = Echo()
    assert published_part(echo) is echo
    assert published_part(PlanesDateByDate(echo)) is echo
