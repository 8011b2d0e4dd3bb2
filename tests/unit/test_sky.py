from __future__ import annotations

import numpy as np
import pytest

from xgfm.cube.mask import mask_block, rejection_table
from xgfm.cube.sky import Sky, cloud_cover, draw_sky, fmask_of, look_through, sun_position
from xgfm.grid import tile_geobox

SUN = (45.0, 150.0)


def clear_sky(shape, **layers):
    plain = {name: np.zeros(shape, "float32") for name in ("cloud", "shadow", "haze")}
    plain |= {"bright": np.ones(shape, "float32"), "imaged": np.ones(shape, bool)}
    return Sky(**{**plain, **layers})


@pytest.mark.parametrize(
    ("tile", "time", "zenith", "azimuth"),
    [
        # tags of real granules: MEAN_SUN_ZENITH_ANGLE, MEAN_SUN_AZIMUTH_ANGLE
        ("T13RCN", "2024-05-07T17:55:57.208", 19.519, 125.083),
        ("T15UXP", "2024-10-09T16:51:46.957", 56.386, 162.338),
    ],
)
def test_the_sun_stands_where_real_granules_say(tile, time, zenith, azimuth):
    place = tile_geobox(tile).extent.to_crs("EPSG:4326").centroid.coords[0]
    assert sun_position(np.datetime64(time, "ms"), *place) == pytest.approx((zenith, azimuth), abs=1.0)


def test_the_sun_stands_overhead_at_noon_of_the_equinox_and_low_at_midnight():
    zenith, _ = sun_position(np.datetime64("2024-03-20T12:07", "ms"), 0.0, 0.0)
    assert zenith < 1
    assert sun_position(np.datetime64("2024-03-20T00:07", "ms"), 0.0, 0.0)[0] > 178
    assert sun_position(np.datetime64("2024-12-21T12:00", "ms"), 0.0, 60.0) == pytest.approx((83.4, 180), abs=1.5)


@pytest.mark.parametrize("azimuth", [30.0, 120.0, 150.0, 225.0])
def test_shadows_fall_away_from_the_sun(azimuth):
    imaged = np.ones((600, 600), bool)
    for seed in range(3):
        sky = draw_sky(np.random.default_rng(seed), imaged, cover=0.2, sun=(50.0, azimuth))
        spectra = np.fft.fft2(sky.shadow - sky.shadow.mean()) * np.conj(np.fft.fft2(sky.cloud - sky.cloud.mean()))
        row, column = np.unravel_index(np.fft.ifft2(spectra).real.argmax(), imaged.shape)
        south, east = (row + 300) % 600 - 300, (column + 300) % 600 - 300
        length = np.hypot(south, east)
        away = -np.array([-np.cos(np.deg2rad(azimuth)), np.sin(np.deg2rad(azimuth))])  # in rows and columns
        assert length * 30 > 900 * np.tan(np.deg2rad(50.0)) - 45  # no cloud is lower than 900 m
        assert np.dot([south, east], away) / length > 0.95


def test_clouds_cover_what_was_asked_for():
    imaged = np.ones((200, 200), bool)
    for cover in (0.1, 0.5, 0.9):
        skies = [draw_sky(np.random.default_rng(seed), imaged, cover=cover, sun=SUN) for seed in range(12)]
        assert np.mean([(sky.cloud > 0).mean() for sky in skies]) == pytest.approx(cover, abs=0.08)
    assert not draw_sky(np.random.default_rng(0), imaged, cover=0.0, sun=SUN).cloud.any()
    assert (draw_sky(np.random.default_rng(0), imaged, cover=1.0, sun=SUN).cloud > 0).mean() > 0.99


def test_a_clear_sky_changes_nothing_and_a_thick_cloud_hides_the_ground():
    ground = np.random.default_rng(0).random((6, 4, 4)).astype("float32")
    np.testing.assert_array_equal(look_through(clear_sky((4, 4)), ground), ground)
    overcast = look_through(clear_sky((4, 4), cloud=np.ones((4, 4), "float32")), ground)
    assert overcast.std(axis=(1, 2)).max() < 1e-6
    assert (overcast[:4] > 0.5).all()
    assert (overcast[4] > overcast[5]).all()


def test_shadow_darkens_more_in_the_infrared_and_haze_brightens_the_blue():
    ground = np.full((6, 1, 1), 0.3, "float32")
    shaded = look_through(clear_sky((1, 1), shadow=np.ones((1, 1), "float32")), ground)[:, 0, 0]
    assert (shaded < 0.2).all()
    assert (np.diff(shaded) < 0).all()
    hazy = look_through(clear_sky((1, 1), haze=np.ones((1, 1), "float32")), ground)[:, 0, 0]
    assert (np.diff(hazy) < 0).all()
    assert hazy[0] > 0.3


def test_fmask_flags_cloud_shadow_and_five_pixels_round_them():
    shape = (40, 40)
    cloud, shadow, water, imaged = (np.zeros(shape) for _ in range(4))
    cloud[10:13, 10:13], shadow[4:7, 6:9] = 0.9, 0.9
    water[30:] = 1
    imaged[:, :35] = 1
    sky = clear_sky(shape, cloud=cloud.astype("float32"), shadow=shadow.astype("float32"), imaged=imaged.astype(bool))
    fmask = fmask_of(sky, water.astype(bool))
    y, x = np.indices(shape)
    hidden = np.argwhere((cloud > 0) | (shadow > 0))
    distance = np.sqrt(((y[..., None] - hidden[:, 0]) ** 2 + (x[..., None] - hidden[:, 1]) ** 2).min(-1))
    for name, where in {
        "cloud": cloud > 0,
        "shadow": shadow > 0,
        "adjacent": (distance > 0) & (distance <= 5),
        "water": water > 0,
        "aerosol-high": cloud > 0,
        "aerosol-low": cloud == 0,
    }.items():
        marked = mask_block(np.ones((1, 1, *shape)), fmask[None], table=rejection_table(name), nodata=0)[0, 0] == 0
        np.testing.assert_array_equal(marked, where | (imaged == 0), err_msg=name)
    assert (fmask[:, 35:] == 255).all()


def test_haze_sets_the_aerosol_level():
    haze = np.array([[0.2, 1.3, 2.0]], "float32")
    assert (fmask_of(clear_sky((1, 3), haze=haze), np.zeros((1, 3), bool)) >> 6).tolist() == [[1, 2, 3]]


def test_cloud_cover_counts_imaged_pixels_only():
    assert cloud_cover(np.array([[64, 66, 68, 64, 255, 255]], "uint8")) == 25
