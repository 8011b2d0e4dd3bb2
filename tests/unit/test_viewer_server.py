"""What the server of the viewer answers, and what it does not."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from results import NORTH, result
from typer.testing import CliRunner

from xgfm.cli import app
from xgfm.errors import XgfmError
from xgfm.store.write import to_zarr
from xgfm.viewer import view
from xgfm.viewer.server import FILES, Viewer


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "map.zarr"
    to_zarr(result(probability=True), folder)
    (folder.parent / "secret.txt").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def served(store: Path) -> Iterator[Viewer]:
    with view(store) as viewer:
        yield viewer


def get(viewer: Viewer, path: str, host: str | None = None) -> tuple[int, bytes, dict[str, str]]:
    """Ask for a path as it is written: clients would tidy it."""
    connection = http.client.HTTPConnection(urlsplit(viewer.url).netloc, timeout=30)
    connection.putrequest("GET", path, skip_host=host is not None)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
    connection.close()
    return found


def told(viewer: Viewer, path: str) -> Any:
    status, body, _ = get(viewer, path)
    assert status == 200, body
    return json.loads(body)


def test_the_page_and_its_files_are_those_of_the_package(served: Viewer) -> None:
    import xgfm.viewer

    folder = Path(str(xgfm.viewer.__file__)).parent / "static"
    assert get(served, "/")[1] == (folder / "index.html").read_bytes()
    for name, kind in FILES.items():
        status, body, headers = get(served, f"/static/{name}")
        assert (status, headers["content-type"]) == (200, kind)
        assert body == (folder / name).read_bytes()


def test_nothing_of_the_page_comes_from_elsewhere(served: Viewer) -> None:
    for name in ("index.html", "viewer.js", "viewer.css"):
        assert b"http" not in get(served, f"/static/{name}")[1]
    assert "default-src 'self'" in get(served, "/")[2]["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/..%2fserver.py",
        "/static/..%5cserver.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/LICENSE-leaflet.txt%00.js",
        "/../../../../etc/passwd",
        "/secret.txt",
        "/map.zarr/zarr.json",
        "/tiles/..%2f..%2fsecret.txt/1/0/0.png",
        "/tiles/%2fetc%2fpasswd/1/0/0.png",
        "/under/1/0/0.png",
        "/blocks.json?bbox=0,0,1,1",
    ],
)
def test_no_file_can_be_named(served: Viewer, path: str) -> None:
    status, body, _ = get(served, path)
    assert status == 404
    assert b"secret" not in body.replace(b"secret.txt", b"")
    assert b"root:" not in body


def test_no_address_can_be_given(served: Viewer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as lure:
        lure.settimeout(0.3)
        address = f"http://127.0.0.1:{lure.getsockname()[1]}/map.zarr"
        for path in ("/map.json", "/tiles/crop_v1_0/3/1/2.png", f"/area.json?layer=crop_v1_0&bbox={BOX}"):
            for name in ("url", "store", "path", "src", "under"):
                plain, asked = (
                    get(served, path + tail) for tail in ("", f"{'&' if '?' in path else '?'}{name}={address}")
                )
                assert plain[:2] == asked[:2]
        with pytest.raises(TimeoutError):
            lure.accept()


BOX = ",".join(f"{v:.6f}" for v in NORTH.geographic_extent.boundingbox.bbox)


def test_pages_of_other_hosts_cannot_read_what_is_served(served: Viewer) -> None:
    assert get(served, "/map.json", host="evil.example")[0] == 400
    assert get(served, "/map.json", host="localhost")[0] == 200
    assert "access-control-allow-origin" not in get(served, "/map.json")[2]


def test_it_listens_on_this_machine_alone(served: Viewer) -> None:
    assert served._socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/tiles/nothing/1/0/0.png", 404, "no layer 'nothing'"),
        ("/tiles/crop_v1_0/1/2/0.png", 400, "no tile 1/2/0"),
        ("/tiles/crop_v1_0/1/0/0.png?time=1", 400, "positions are 0 to 0"),
        ("/tiles/crop_v1_0/1/0/0.png?time=-1", 400, "no whole number"),
        ("/tiles/crop_v1_0/1/0/0.png?hide=a", 400, "no whole number"),
        ("/tiles/probability/1/0/0.png?class=3", 400, "positions are 0 to 2"),
        ("/area.json?layer=probability&bbox=0,0,1,1", 404, "no classes"),
        ("/area.json?layer=crop_v1_0&bbox=0,0,1", 400, "west,south,east,north"),
        ("/area.json?layer=crop_v1_0&bbox=1,0,0,1", 400, "holds nothing"),
        ("/area.json?layer=crop_v1_0&bbox=nan,0,1,1", 400, "holds nothing"),
        ("/value.json?lon=1", 400, "no number"),
        ("/value.json?lon=nan&lat=0", 400, "no place"),
        ("/value.json?lon=1&lat=99", 400, "no place"),
    ],
)
def test_what_is_asked_wrongly_is_told_so(served: Viewer, path: str, status: int, said: str) -> None:
    found, body, _ = get(served, path)
    assert (found, said in json.loads(body)["error"]) == (status, True), body


def test_the_page_is_told_of_the_store(served: Viewer) -> None:
    about = told(served, "/map.json")
    assert [layer["name"] for layer in about["layers"]] == ["crop_v1_0", "probability"]
    assert [c["name"] for c in about["layers"][0]["classes"]] == ["Natural Vegetation", "Winter Wheat", "Open Water"]
    assert about["layers"][1]["numbers"] == ["Natural Vegetation", "Winter Wheat", "Open Water"]
    (south, west), (north, east) = about["bounds"]
    assert (west, south, east, north) == pytest.approx(NORTH.geographic_extent.boundingbox.bbox, abs=1e-6)
    assert (about["blocks"], about["under"], about["times"]) == (None, None, [])


def test_values_and_areas_come_as_json(served: Viewer) -> None:
    west, south, east, north = map(float, BOX.split(","))
    said = told(served, f"/value.json?lon={(west + east) / 2}&lat={(south + north) / 2}")
    assert said["values"]["crop_v1_0"] in (0, 1, 2)
    assert len(said["values"]["probability"]) == 3
    for box in (BOX, "-180,-90,180,90"):
        shares = told(served, f"/area.json?layer=crop_v1_0&bbox={box}")["shares"]
        assert sum(each["km2"] for each in shares) == pytest.approx((70 * 90 - 99) * 900 / 1e6, rel=0.01)


def test_a_place_that_the_projection_does_not_reach_has_no_values(served: Viewer) -> None:
    assert told(served, "/value.json?lon=0&lat=0")["values"] == {}


def test_texts_of_a_store_stay_texts() -> None:
    mapped = result().assign_attrs(title="</title><script>alert(1)</script>")
    with view(mapped) as viewer:
        assert b"alert" not in get(viewer, "/")[1]
        assert told(viewer, "/map.json")["title"] == "</title><script>alert(1)</script>"


def test_a_store_that_changes_is_seen_as_it_is(served: Viewer) -> None:
    assert get(served, "/tiles/crop_v1_0/1/0/0.png")[2]["cache-control"] == "no-store"


def test_a_port_that_is_taken_is_told(served: Viewer, store: Path) -> None:
    port = urlsplit(served.url).port
    with pytest.raises(XgfmError, match=f"port={port} of this machine cannot be used"):
        view(store, port=port or 0)
    said = CliRunner().invoke(app, ["view", str(store), "--port", str(port)])
    assert said.exit_code == 1
    assert f"--port {port} of this machine" in said.output


@pytest.mark.parametrize("port", [99_999, 65_536, -1, True, "80"])
def test_what_is_no_port_is_told(store: Path, port: Any) -> None:
    with pytest.raises(XgfmError, match=r"port=.* is no port.*1 to 65535"):
        view(store, port=port)


def test_no_port_on_the_command_line(store: Path) -> None:
    said = CliRunner().invoke(app, ["view", str(store), "--port", "99999"])
    assert (said.exit_code, said.output.startswith("error: --port 99999 is no port")) == (1, True)


def test_it_is_gone_when_it_is_closed() -> None:
    viewer = view(result())
    assert viewer.url in viewer._repr_html_()
    viewer.close()
    with pytest.raises(ConnectionRefusedError):
        get(viewer, "/")


def test_looking_at_a_store_loads_no_torch(store: Path) -> None:
    code = f"""
import sys, urllib.request
from xgfm.viewer import view
with view({str(store)!r}) as viewer:
    for path in ("map.json", "tiles/crop_v1_0/3/1/2.png", "value.json?lon=-94&lat=44"):
        urllib.request.urlopen(viewer.url + path).read()
print("torch" in sys.modules)
"""
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert seen == "False"


def test_a_result_in_memory_can_be_looked_at() -> None:
    with view(result().compute()) as viewer:
        assert told(viewer, "/map.json")["title"] == "Crops"
