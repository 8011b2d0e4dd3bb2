"""What GDAL is told of an href, and what is never said of it."""

from __future__ import annotations

import stat
import traceback
from pathlib import Path
from typing import Any

import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.errors import RasterioIOError

from xgfm.cube import credentials
from xgfm.cube.credentials import GDAL_SETTINGS, gdal_path, gdal_settings, read
from xgfm.errors import ItemError, ReadError, XgfmError

NASA = "https://data.lpdaac.earthdatacloud.nasa.gov/lp-prod-protected/HLSL30.020/x/x.B02.tif"
AZURE = "https://hls2euwest.blob.core.windows.net/hls2/{}/13/R/CN/2024/05/07/x/x.B02.tif"


def test_plain_hrefs_are_opened_as_they_are() -> None:
    assert gdal_path("/data/B02.tif") == "/data/B02.tif"
    assert gdal_path("s3://lp-prod-protected/B02.tif") == "s3://lp-prod-protected/B02.tif"
    assert gdal_path(NASA) == f"/vsicurl/{NASA}"


@pytest.mark.parametrize(("sensor", "collection"), [("L30", "hls2-l30"), ("S30", "hls2-s30")])
def test_planetary_computer_hrefs_are_signed_by_gdal(sensor: str, collection: str) -> None:
    href = AZURE.format(sensor)
    assert gdal_path(href) == f"/vsicurl?pc_url_signing=yes&pc_collection={collection}&url={href}"


@pytest.mark.parametrize("host", ["hls2euwest.blob.core.windows.net.evil.org", "xhls2euwest.blob.core.windows.net"])
def test_only_that_host_is_signed(host: str) -> None:
    assert gdal_path(f"https://{host}/B02.tif") == f"/vsicurl/https://{host}/B02.tif"


def test_the_earthdata_token_is_for_earthdata_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARTHDATA_TOKEN", "canary")
    assert credentials._credentials(NASA) == {"GDAL_HTTP_AUTH": "BEARER", "GDAL_HTTP_BEARER": "canary"}
    for other in (
        AZURE.format("L30"),
        "https://earthdatacloud.nasa.gov.evil.org/x.tif",
        "https://evilearthdata.nasa.gov.org/x",
        "https://notearthdata.nasa.gov/x",
        "/data/earthdata.nasa.gov/x.tif",
        "https://evil.org/https://data.earthdata.nasa.gov/x",
    ):
        assert credentials._credentials(other) == {}


def test_netrc_comes_with_a_private_cookie_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EARTHDATA_TOKEN", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert credentials._credentials(NASA) == {}
    (tmp_path / "netrc").write_text("machine urs.earthdata.nasa.gov login u password canary\n")
    found = credentials._credentials(NASA)
    assert found["GDAL_HTTP_NETRC_FILE"] == str(tmp_path / "netrc")
    assert found["GDAL_HTTP_COOKIEFILE"] == found["GDAL_HTTP_COOKIEJAR"]
    assert stat.S_IMODE(Path(found["GDAL_HTTP_COOKIEFILE"]).stat().st_mode) == 0o600
    assert "canary" not in str(found)


def test_a_users_settings_come_on_top() -> None:
    assert gdal_settings() == dict(GDAL_SETTINGS)
    assert gdal_settings({"GDAL_HTTP_TIMEOUT": "5", "CPL_DEBUG": "ON"}) == {
        **GDAL_SETTINGS, "GDAL_HTTP_TIMEOUT": "5", "CPL_DEBUG": "ON",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["GDAL_HTTP_BEARER", "GDAL_HTTP_HEADERS", "GDAL_HTTP_USERPWD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
     "AZURE_STORAGE_SAS_TOKEN", "GDAL_HTTP_COOKIE", "AZURE_STORAGE_ACCESS_KEY", "GDAL_HTTP_PROXYUSERPWD",
     "AZURE_STORAGE_CONNECTION_STRING", "GS_OAUTH2_PRIVATE_KEY", "SWIFT_KEY", "swift_key", "AWS_ACCESS_KEY_ID",
     "GS_OAUTH2_CLIENT_SECRET", "GOOGLE_APPLICATION_CREDENTIALS", "GDAL_HTTP_SSLKEYPASSWD"],
)  # fmt: skip
def test_secrets_are_not_settings(name: str) -> None:
    with pytest.raises(XgfmError, match=rf"gdal= holds \['{name}'\].*stored in the graph") as caught:
        gdal_settings({name: "canary"})
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    ["http://u:canary@proxy:3128", "u:canary@proxy", "https://canary@host/", "AccountName=a;AccountKey=canary",
     "Authorization: Bearer canary", "sig=canary", "token: canary", "-----BEGIN PRIVATE KEY-----canary"],
)  # fmt: skip
def test_secrets_are_known_by_their_value(value: str) -> None:
    with pytest.raises(XgfmError, match=r"gdal= holds \['GDAL_HTTP_PROXY'\].*stored in the graph") as caught:
        gdal_settings({"GDAL_HTTP_PROXY": value})
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("GDAL_HTTP_PROXY", "http://proxy:3128"), ("GDAL_HTTP_TCP_KEEPALIVE", "YES"), ("GDAL_CACHEMAX", "64"),
     ("VSICURL_PC_SAS_TOKEN_URL", "https://host/api/"), ("AWS_S3_ENDPOINT", "host:9000"), ("GDAL_HTTP_AUTH", "NTLM"),
     ("CPL_VSIL_CURL_ALLOWED_EXTENSIONS", ".tif"), ("AWS_NO_SIGN_REQUEST", "YES"), ("GDAL_HTTP_USERAGENT", "me")],
)  # fmt: skip
def test_plain_settings_are_no_secrets(name: str, value: str) -> None:
    assert gdal_settings({name: value})[name] == value


def test_settings_are_a_mapping() -> None:
    with pytest.raises(XgfmError, match="gdal= is a str; expected GDAL settings"):
        gdal_settings("GDAL_HTTP_TIMEOUT=5")  # type: ignore[arg-type]


def test_settings_reach_the_reading_thread_and_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARTHDATA_TOKEN", "canary")
    seen = read(NASA, lambda: dict(rasterio.env.getenv()), item="i", asset="B02")
    assert seen["GDAL_HTTP_BEARER"] == "canary"
    assert not rasterio.env.hasenv() or "GDAL_HTTP_BEARER" not in rasterio.env.getenv()
    # An option of the outer block is still there inside.
    with rasterio.Env(GDAL_HTTP_USERAGENT="outer"):
        assert read(NASA, rasterio.env.getenv, item="i", asset="B02")["GDAL_HTTP_USERAGENT"] == "outer"


def fail(error: Exception, href: str = NASA) -> ReadError:
    def action() -> Any:
        raise error

    with pytest.raises(ReadError) as caught:
        read(href, action, item="HLS.L30.X", asset="B02")
    return caught.value


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RasterioIOError("HTTP response code: 404"), "The file is not there: leave the item out"),
        (
            RasterioIOError("HTTP response code: 403"),
            "The Earthdata login failed: set EARTHDATA_TOKEN, or a netrc entry",
        ),
        (RasterioIOError("'x.tif' not recognized as being in a supported file format."), "The Earthdata login failed"),
        (RasterioIOError("HTTP response code: 503"), "Reading again may help"),
        (ValueError("off the grid"), "off the grid"),
    ],
)
def test_failures_name_item_asset_reason_and_mend(error: Exception, message: str) -> None:
    text = str(fail(error))
    assert text.startswith(f"cannot read asset 'B02' of item 'HLS.L30.X' ({NASA}): ")
    assert f"): {str(error).removesuffix('.')}. " in text
    assert ".." not in text
    assert message in text


@pytest.mark.parametrize("href", ["/data/x.tif", "data/x.tif", "file:///data/x.tif"])
def test_reading_a_local_file_again_helps_nobody(href: str) -> None:
    for reason in ("TIFFFillTile:Read error at row 0", "not recognized as being in a supported file format"):
        text = str(fail(RasterioIOError(reason), href))
        assert text.endswith(
            ". The file is damaged, cut off or no raster: write or fetch it anew, or leave the item out"
        )
    assert "The file is not there" in str(fail(RasterioIOError("/data/x.tif: No such file or directory"), href))


def test_an_error_that_says_what_mends_it_has_no_further_hint() -> None:
    assert str(fail(ItemError("two bands; correct the item"))).endswith("): two bands; correct the item")


def test_the_innermost_error_is_told() -> None:
    outer = RuntimeError("Error opening '/vsicurl/x'")
    outer.__cause__ = RasterioIOError("HTTP response code: 409")
    assert "HTTP response code: 409. Access is denied" in str(fail(outer, AZURE.format("L30")))


@given(st.sampled_from(["?sig=canary", "?st=1&se=2&sig=canary", "?X-Amz-Signature=canary&a=b"]))
def test_no_signature_in_what_is_raised(query: str) -> None:
    raised = fail(RasterioIOError(f"cannot open 'https://host/x.tif{query}' (https://u:canary@host/)"))
    assert "canary" not in "".join(traceback.format_exception(raised))
    assert raised.__context__ is None
    assert raised.__cause__ is None


def test_programming_errors_are_left_alone() -> None:
    def action() -> Any:
        raise AttributeError("a bug")

    with pytest.raises(AttributeError):
        read(NASA, action, item="i", asset="B02")


def test_a_path_that_failed_is_opened_past_gdals_memory() -> None:
    href = "https://host/once-failed.tif"
    fail(RasterioIOError("HTTP response code: 503"), href)
    assert read(href, rasterio.env.getenv, item="i", asset="a")["CPL_VSIL_CURL_NON_CACHED"] == f"/vsicurl/{href}"
    assert "CPL_VSIL_CURL_NON_CACHED" not in read(href, rasterio.env.getenv, item="i", asset="a")
