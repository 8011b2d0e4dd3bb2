"""Reads that fail, and secrets that must not travel: a badly behaved server on 127.0.0.1, both loaders."""

from __future__ import annotations

import base64
import logging
import multiprocessing
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster
from granules import granule, read_own, with_hrefs
from rasterio.enums import Resampling
from rasterio.windows import Window
from serving import Apart, Process
from stackstac.raster_spec import RasterSpec
from stackstac.rio_env import LayeredEnv

from xgfm.cube import credentials, loader_stackstac
from xgfm.cube.catalogs import save_items
from xgfm.cube.items import normalise
from xgfm.cube.loader_stackstac import StepReader
from xgfm.cube.open import open_items
from xgfm.errors import ReadError

BOTH = pytest.mark.parametrize("loader", ["stackstac", "odc"])
QUICK = {"GDAL_HTTP_RETRY_DELAY": "0.01", "GDAL_HTTP_MAX_RETRY": "3"}
NAME = "HLS.L30.T15TVM.2024123T170439.v2.0"
CANARY = "canary0123456789"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A granule of several tiles a file, on disk."""
    return granule(tmp_path_factory.mktemp("remote"), window=(0, 0, 300, 280), missing=0.02)


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with Process(ctx=multiprocessing.get_context("spawn")) as running:
        yield running


@contextmanager
def serving(process: Process, local: dict[str, Any], kind: str = "Server", **fields: Any) -> Iterator[Apart]:
    """The granule behind HTTP."""
    server = process.Apart(kind, **fields)
    for asset in local["assets"].values():
        server.put(f"/{Path(asset['href']).name}", Path(asset["href"]).read_bytes())
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def server(process: Process, local: dict[str, Any]) -> Iterator[Apart]:
    with serving(process, local) as running:
        yield running


@pytest.fixture
def pixels(local: dict[str, Any]) -> np.ndarray:
    return read_own(local, ["B02", "B04"])


def path_of(asset: str) -> str:
    return f"/{NAME}.{asset}.tif"


def cube_of(local: dict[str, Any], server: Apart, **options: Any) -> xr.DataArray:
    gdal = {**QUICK, **options.pop("gdal", {})}
    bands = options.pop("bands", ("blue", "red"))
    return open_items([with_hrefs(local, server.url())], mask=None, bands=bands, chunks=200, gdal=gdal, **options)


@BOTH
def test_files_over_http_are_the_files(loader: str, local: dict[str, Any], server: Apart, pixels: np.ndarray) -> None:
    cube = cube_of(local, server, loader=loader, gdal={"GDAL_HTTP_USERAGENT": "from-the-graph"})
    assert server.asked() == []  # nothing before a block is computed
    assert (cube.values[0] == pixels).all()
    assert {r.headers["User-Agent"] for r in server.asked()} == {"from-the-graph"}
    assert {r.path for r in server.asked()} == {path_of("B02"), path_of("B04")}


@BOTH
@pytest.mark.parametrize("code", [400, 409, 429, 500, 503])
def test_passing_errors_are_retried(
    loader: str, code: int, local: dict[str, Any], server: Apart, pixels: np.ndarray
) -> None:
    """Twice when the file is opened, and twice while its pixels are read."""
    server.script(path_of("B02"), code, code)
    server.script(path_of("B04"), 200, 200, code, code)
    cube = cube_of(local, server, loader=loader)
    assert (cube.values[0] == pixels).all()
    assert server.script_left(path_of("B02")) == server.script_left(path_of("B04")) == []


@BOTH
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (404, "The file is not there: leave the item out"),
        (403, "Access is denied, or a token has expired"),
        (401, "Access is denied, or a token has expired"),
        (409, "Access is denied, or a token has expired"),
        (503, "Reading again may help"),
    ],
)
def test_lasting_errors_are_errors(loader: str, code: int, message: str, local: dict[str, Any], server: Apart) -> None:
    server.script(path_of("B04"), -code)
    cube = cube_of(local, server, loader=loader)
    with pytest.raises(ReadError, match=rf"cannot read asset 'B04' of item '{NAME}' .*{code}.*{message}"):
        cube.compute()
    assert len(server.asked(path_of("B04"))) >= (4 if code in (409, 503) else 1)


@BOTH
def test_a_login_page_is_an_error(loader: str, local: dict[str, Any], server: Apart) -> None:
    server.put(path_of("B04"), b"<html>Earthdata Login</html>" * 100)
    cube = cube_of(local, server, loader=loader)
    with pytest.raises(ReadError, match=rf"asset 'B04' of item '{NAME}'.*not a raster, a login page perhaps"):
        cube.compute()


@BOTH
@pytest.mark.parametrize("kept", [0.6, 0.02])
def test_a_truncated_file_is_an_error(loader: str, kept: float, local: dict[str, Any], server: Apart) -> None:
    whole = Path(local["assets"]["B04"]["href"]).read_bytes()
    server.put(path_of("B04"), whole[: int(kept * len(whole))])
    cube = cube_of(local, server, loader=loader)
    with pytest.raises(ReadError, match=rf"cannot read asset 'B04' of item '{NAME}'"):
        cube.compute()


@BOTH
def test_the_real_truncated_file_is_an_error(loader: str, shared_data: Path) -> None:
    """A granule that its publishers cut short: the header reads, the pixels do not."""
    cut = shared_data / "hls" / "header" / "HLS.L30.T19LBJ.2020239T144556.v2.0.B01.tif"
    item = {
        "id": "HLS.L30.T19LBJ.2020239T144556.v2.0",
        "properties": {"datetime": "2020-08-26T14:45:56Z"},
        "assets": {"B04": {"href": str(cut)}},
    }
    with pytest.raises(Exception, match="points to the file"):
        open_items([item], bands=("red",), mask=None)


@BOTH
def test_the_real_truncated_file_under_its_own_name(loader: str, shared_data: Path, tmp_path: Path) -> None:
    cut = shared_data / "hls" / "header" / "HLS.L30.T19LBJ.2020239T144556.v2.0.B01.tif"
    (tmp_path / "red.tif").symlink_to(cut)
    item = {
        "id": "HLS.L30.T19LBJ.2020239T144556.v2.0",
        "properties": {"datetime": "2020-08-26T14:45:56Z"},
        "assets": {"B04": {"href": str(tmp_path / "red.tif")}},
    }
    cube = open_items([item], bands=("red",), mask=None, loader=loader)
    with pytest.raises(ReadError, match=r"cannot read asset 'B04' of item 'HLS.L30.T19LBJ"):
        cube[..., :200, :200].compute()


@BOTH
def test_a_server_that_hangs_is_given_up(loader: str, local: dict[str, Any], server: Apart) -> None:
    server.hang(path_of("B04"))
    patience = {"GDAL_HTTP_TIMEOUT": "1", "GDAL_HTTP_MAX_RETRY": "0"}
    cube = cube_of(local, server, loader=loader, bands=("red",), gdal=patience)
    with pytest.raises(ReadError, match="cannot read asset 'B04'"):
        cube[..., :10, :10].compute()


@BOTH
@pytest.mark.parametrize("fault", ["503", "404", "login", "cut"])
def test_a_second_try_is_one(loader: str, fault: str, local: dict[str, Any], server: Apart, pixels: np.ndarray) -> None:
    """GDAL remembers failures and bad answers for the life of a process: computing again must ask again."""
    path = path_of("B04")
    whole = Path(local["assets"]["B04"]["href"]).read_bytes()
    if fault in ("503", "404"):
        server.script(path, -int(fault))
    else:
        server.put(path, b"<html>login</html>" if fault == "login" else whole[: len(whole) // 2])
    cube = cube_of(local, server, loader=loader)
    with pytest.raises(ReadError):
        cube.compute()
    server.script(path)
    server.put(path, whole)
    assert (cube.values[0] == pixels).all()


def test_a_retry_by_dask_is_a_second_try(local: dict[str, Any], server: Apart, pixels: np.ndarray) -> None:
    server.script(path_of("B04"), *[503] * 4)
    cube = cube_of(local, server, bands=("red",))
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        assert (client.compute(cube, retries=2).result().values[0] == pixels[1]).all()


def test_the_same_reader_tries_again(local: dict[str, Any], server: Apart, pixels: np.ndarray) -> None:
    """Dask's retry meets the same reader: the header came, the pixels did not."""
    whole = Path(local["assets"]["B04"]["href"]).read_bytes()
    record = normalise(with_hrefs(local, server.url()))
    item = loader_stackstac._item("0", [record], ("red",), record.geobox, 32615)
    reader = StepReader(
        url=item["assets"]["red"]["href"], spec=RasterSpec(32615, record.geobox.boundingbox.bbox, (30, 30)),
        resampling=Resampling.nearest, dtype=np.dtype("int16"), fill_value=np.int16(-9999),
        gdal_env=LayeredEnv(always=credentials.gdal_settings(QUICK)),
    )  # fmt: skip
    server.put(path_of("B04"), whole[: len(whole) // 2])
    window = Window(0, 0, 280, 300)
    with pytest.raises(ReadError):
        reader.read(window)
    server.put(path_of("B04"), whole)
    assert (reader.read(window) == pixels[1]).all()


@BOTH
def test_settings_and_credentials_reach_the_threads_of_other_processes(
    loader: str, local: dict[str, Any], server: Apart, pixels: np.ndarray
) -> None:
    """Worker processes: retries and user agent from the graph, the token from the worker's own environment."""
    server.script(path_of("B02"), 503, 503)
    cube = cube_of(local, server, loader=loader, gdal={"GDAL_HTTP_USERAGENT": "from-the-graph"})
    cluster = LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None)
    with cluster, Client(cluster) as client:
        client.run(trust_this_server, CANARY)
        assert (client.compute(cube).result().values[0] == pixels).all()
    assert {r.headers["User-Agent"] for r in server.asked()} == {"from-the-graph"}
    assert {r.headers.get("Authorization") for r in server.asked()} == {f"Bearer {CANARY}"}
    assert CANARY not in str(cloudpickle.dumps(cube))


def trust_this_server(token: str) -> None:
    """Runs on the worker."""
    import os

    from xgfm.cube import credentials

    os.environ["EARTHDATA_TOKEN"] = token
    credentials.EARTHDATA_HOSTS = ("127.0.0.1",)


def nowhere_in(canary: str, cube: xr.DataArray, log: str, folder: Path) -> None:
    """Look for a secret wherever a cube can carry it."""
    assert canary.encode() not in cloudpickle.dumps(cube)
    assert canary.encode() not in cloudpickle.dumps(cube.data.__dask_graph__())
    assert canary not in repr(cube) + str(cube.attrs) + str(cube.encoding) + cube._repr_html_()
    assert canary not in log
    cube.to_zarr(folder / "cube.zarr")
    for path in folder.rglob("*"):
        assert not path.is_file() or canary.encode() not in path.read_bytes()


def all_of(error: BaseException) -> str:
    """An error as a log would print it, with whatever it is chained to, and as it travels between processes."""
    return "".join(traceback.format_exception(error)) + str(cloudpickle.dumps(error))


@BOTH
def test_the_earthdata_token_stays_on_the_worker(
    loader: str, local: dict[str, Any], server: Apart, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, tmp_path: Path, process: Process,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(credentials, "EARTHDATA_HOSTS", ("127.0.0.1",))
    monkeypatch.setenv("EARTHDATA_TOKEN", CANARY)
    cube = cube_of(local, server, loader=loader)
    assert (cube.values[0] == pixels).all()
    assert {r.headers.get("Authorization") for r in server.asked()} == {f"Bearer {CANARY}"}
    nowhere_in(CANARY, cube, caplog.text, tmp_path)
    # Looked up when a block is read: another token for the same cube.
    server.forget()
    monkeypatch.setenv("EARTHDATA_TOKEN", "later")
    with serving(process, local) as other:
        assert (cube_of(local, other, loader=loader).values[0] == pixels).all()
        assert {r.headers.get("Authorization") for r in other.asked()} == {"Bearer later"}


@BOTH
def test_the_token_is_not_in_what_is_raised(
    loader: str, local: dict[str, Any], server: Apart, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(credentials, "EARTHDATA_HOSTS", ("127.0.0.1",))
    monkeypatch.setenv("EARTHDATA_TOKEN", CANARY)
    server.script(path_of("B04"), -401)
    with pytest.raises(ReadError, match="The Earthdata login failed: set EARTHDATA_TOKEN") as caught:
        cube_of(local, server, loader=loader).compute()
    assert CANARY not in all_of(caught.value) + caplog.text


@BOTH
def test_the_token_is_not_sent_to_where_a_redirect_leads(
    loader: str,
    local: dict[str, Any],
    server: Apart,
    pixels: np.ndarray,
    process: Process,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NASA's gateway answers with a redirect to a signed URL of another host."""
    monkeypatch.setattr(credentials, "EARTHDATA_HOSTS", ("127.0.0.1",))
    monkeypatch.setenv("EARTHDATA_TOKEN", CANARY)
    with serving(process, {"assets": {}}) as gateway:
        for path in map(path_of, ("B02", "B04")):
            gateway.redirect(path, f"{server.url()}{path}?X-Amz-Signature=s")
        assert (cube_of(local, gateway, loader=loader).values[0] == pixels).all()
        assert {r.headers.get("Authorization") for r in gateway.asked()} == {f"Bearer {CANARY}"}
    assert server.asked()
    assert {r.headers.get("Authorization") for r in server.asked()} == {None}


@BOTH
def test_other_hosts_get_no_token(
    loader: str, local: dict[str, Any], server: Apart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EARTHDATA_TOKEN", CANARY)
    cube_of(local, server, loader=loader).compute()
    assert {r.headers.get("Authorization") for r in server.asked()} == {None}


@BOTH
def test_netrc(
    loader: str, local: dict[str, Any], server: Apart, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, tmp_path: Path,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    netrc = tmp_path / "home" / "netrc"
    netrc.parent.mkdir()
    netrc.write_text(f"machine 127.0.0.1 login someone password {CANARY}\n")
    netrc.chmod(0o600)
    monkeypatch.setattr(credentials, "EARTHDATA_HOSTS", ("127.0.0.1",))
    monkeypatch.delenv("EARTHDATA_TOKEN", raising=False)
    monkeypatch.setenv("NETRC", str(netrc))
    cube = cube_of(local, server, loader=loader)
    assert (cube.values[0] == pixels).all()
    login = base64.b64encode(f"someone:{CANARY}".encode()).decode()
    assert {r.headers.get("Authorization") for r in server.asked()} == {f"Basic {login}"}
    (tmp_path / "out").mkdir()
    nowhere_in(CANARY, cube, caplog.text, tmp_path / "out")
    nowhere_in(login, cube.copy(), caplog.text, tmp_path / "out" / "again")


@pytest.fixture
def azure(process: Process, local: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Apart]:
    """Tokens here are within GDAL's margin of their end, so each request takes a new one."""
    with serving(process, local, "TokenServer", secret=CANARY) as running:
        monkeypatch.setattr(credentials, "PLANETARY_COMPUTER_HOSTS", ("127.0.0.1",))
        monkeypatch.setenv("VSICURL_PC_SAS_TOKEN_URL", f"{running.url()}/token/")
        yield running


@BOTH
def test_planetary_computer_is_signed_on_reading_and_anew_before_the_token_ends(
    loader: str, local: dict[str, Any], azure: Apart, pixels: np.ndarray, caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    cube = cube_of(local, azure, loader=loader)
    assert azure.asked() == []
    assert (cube.compute(scheduler="synchronous").values[0] == pixels).all()
    assert len(azure.asked("/token/hls2-l30")) > 2
    queries = [r.query for r in azure.asked() if not r.path.startswith("/token/")]
    assert len(set(queries)) > 2
    assert all(CANARY in query for query in queries)
    nowhere_in(CANARY, cube, caplog.text, tmp_path)


@BOTH
def test_the_signature_is_not_in_what_is_raised(
    loader: str, local: dict[str, Any], azure: Apart, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    azure.script(path_of("B04"), -403)
    with pytest.raises(ReadError, match=rf"asset 'B04' of item '{NAME}'.*403") as caught:
        cube_of(local, azure, loader=loader).compute(scheduler="synchronous")
    assert CANARY not in all_of(caught.value) + caplog.text


@BOTH
def test_a_token_end_point_that_is_busy_is_asked_again(
    loader: str, local: dict[str, Any], azure: Apart, pixels: np.ndarray
) -> None:
    azure.script("/token/hls2-l30", 504, 504)
    assert (cube_of(local, azure, loader=loader).compute(scheduler="synchronous").values[0] == pixels).all()


@BOTH
def test_a_refused_token_is_an_error(loader: str, local: dict[str, Any], azure: Apart) -> None:
    azure.script("/token/hls2-l30", -404)
    with pytest.raises(ReadError, match=rf"of item '{NAME}'.*Access is denied"):
        cube_of(local, azure, loader=loader).compute(scheduler="synchronous")


@BOTH
def test_signed_items_are_signed_anew(loader: str, local: dict[str, Any], tmp_path: Path) -> None:
    """Items that `planetary_computer.sign` has been over: the signature, soon dead, is dropped."""
    item = with_hrefs(local, "https://hls2euwest.blob.core.windows.net/hls2/L30/15/T/VM/2024/05/02")
    for asset in item["assets"].values():
        asset["href"] += f"?st=1&se=2&sig={CANARY}"
    cube = open_items([item], mask=None, loader=loader)
    assert CANARY.encode() not in cloudpickle.dumps(cube)
    save_items([item], tmp_path / "items.json")
    assert CANARY not in (tmp_path / "items.json").read_text()


@BOTH
def test_the_clients_gdal_environment_stays_there(loader: str, local: dict[str, Any], server: Apart) -> None:
    import rasterio

    with rasterio.Env(GDAL_HTTP_BEARER=CANARY):
        cube = cube_of(local, server, loader=loader)
    assert CANARY.encode() not in cloudpickle.dumps(cube.data.__dask_graph__())
