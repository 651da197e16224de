"""Addresses, against a server of our own on this machine: DANDI's answers and byte ranges."""

import http.server
import json
import re
import sys
import threading
import urllib.parse

import numpy as np
import pytest

import calm_jax
from calm_jax import cli
from calm_jax.errors import RecordingError
from calm_jax.recordings.formats import peek_at, remote
from tests.recordings.formats.nwb_files import TRACES, Made

ASSETS = "/api/dandisets/000123/versions/draft/assets/"


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: dict = {}
    fails_after = None  # bytes sent before the server breaks off
    sent = 0

    def log_message(self, *_):
        pass

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        cls = type(self)
        if url.path == ASSETS:
            return self._json(urllib.parse.parse_qs(url.query))
        if url.path == ASSETS + "a-1/download/":
            self.send_response(302)
            self.send_header("Location", "/blobs/x.nwb")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        data = cls.files.get(url.path)
        if data is None:
            return self._send(404, b"no")
        if cls.fails_after is not None and cls.sent > cls.fails_after:
            return self._send(403, b"expired")
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None or url.path.startswith("/whole/"):
            return self._send(200, data)
        a, b = int(match[1]), min(int(match[2]), len(data) - 1)
        if a >= len(data):
            return self._send(416, b"")
        cls.sent += b - a + 1
        return self._send(206, data[a : b + 1], f"bytes {a}-{b}/{len(data)}")

    def _json(self, query):
        pages = {
            "1": {"results": [{"path": "sub-1/x.nwb.old", "asset_id": "a-0"}], "next": None},
            "2": {"results": [{"path": "sub-1/x.nwb", "asset_id": "a-1"}], "next": None},
        }
        host = f"http://127.0.0.1:{self.server.server_port}"
        pages["1"]["next"] = f"{host}{ASSETS}?path=sub-1/x.nwb&page=2"
        if "odd" in query["path"][0]:
            return self._send(200, b"<html>")
        if query["path"][0] != "sub-1/x.nwb":
            return self._send(200, b'{"results": [], "next": null}')
        return self._send(200, json.dumps(pages[query.get("page", ["1"])[0]]).encode())

    def _send(self, status, data, content_range=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(data)
        return


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    m = Made(session_id="s1")
    big = np.random.default_rng(0).normal(size=(60_000, 6)).astype(np.float32)
    big[:40] = TRACES
    m.series(big)
    return m.write(tmp_path_factory.mktemp("remote") / "x.nwb").read_bytes()


@pytest.fixture
def host(data, monkeypatch):
    class Mine(Server):
        files = {"/blobs/x.nwb": data, "/whole/x.nwb": data, "/e.nwb": b"", "/t.nwb": data[:999]}

    class Host(http.server.ThreadingHTTPServer):
        request_queue_size = 128  # of 5, a busy machine lets connections time out

    server = Host(("127.0.0.1", 0), Mine)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.files, server.handler = Mine.files, Mine
    server.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv(remote.API_VARIABLE, server.url + "/api")
    monkeypatch.setattr(remote, "SILENCE", 5.0)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def refused(address, words, **options):
    with pytest.raises(RecordingError, match=words) as e:
        calm_jax.read(address, **options)
    assert "\n" not in str(e.value)


def test_a_file_is_read_where_it_lies(host, data):
    s = calm_jax.read(f"{host.url}/blobs/x.nwb")
    np.testing.assert_array_equal(s.traces[:40], TRACES)
    assert (s.n_frames, s.session) == (60_000, "s1")
    host.handler.sent = 0
    about = peek_at(f"{host.url}/blobs/x.nwb")
    assert (about.frames, about.neurons, about.rate) == (60_000, 6, 10.0)
    assert host.handler.sent < len(data) // 2  # the traces stayed where they are


def test_dandi_addresses_find_the_asset(host, capsys):
    address = "dandi://000123/sub-1/x.nwb"
    assert calm_jax.read(address).n_neurons == 6
    assert calm_jax.read(address, api=host.url + "/api/", series="Fluorescence").n_neurons == 6
    assert cli.main(["info", "--json", address, f"{host.url}/blobs/x.nwb"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["path"] == address and second["path"] == f"{host.url}/blobs/x.nwb"
    assert first["frames"] == second["frames"] == 60_000 and first["missing"] is None


def test_what_can_go_wrong_is_told(host, monkeypatch):
    refused("dandi://000123/sub-1/y.nwb", "no such file; found nothing of that name")
    refused("dandi://000123", "not an address of a file; expected dandi://DANDISET/PATH")
    refused("dandi://000123/odd", "an answer that is not DANDI's")
    refused("dandi://000999/sub-1/x.nwb", "nothing is there; found HTTP status 404")
    refused(f"{host.url}/gone.nwb", f"{host.url}/gone.nwb: nothing is there; found HTTP status 404")
    refused(f"{host.url}/whole/x.nwb", "does not send parts of files; found HTTP status 200")
    refused(f"{host.url}/e.nwb", "the file is empty")
    refused(f"{host.url}/t.nwb", "damaged or cut short")
    refused("http://127.0.0.1:9/x.nwb", "127.0.0.1:9: no connection")
    refused(f"{host.url}/blobs/x.nwb", "address has no option 'seris'.*'series'", seris="x")
    monkeypatch.setitem(sys.modules, "remfile", None)
    refused(f"{host.url}/blobs/x.nwb", r"needs remfile.*pip install 'calm_jax\[dandi\]'")


def test_a_server_that_breaks_off_is_not_a_damaged_file(host):
    host.handler.fails_after = 50_000
    refused(f"{host.url}/blobs/x.nwb", "could not be read over the network; found .*403")


def test_a_silent_server_is_left(monkeypatch):
    import socket

    monkeypatch.setattr(remote, "SILENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        refused(f"http://127.0.0.1:{server.getsockname()[1]}/x.nwb", "no answer in time")


def test_addresses_survive_path():
    from pathlib import Path

    for address in ("https://a.b/c/d.nwb?x=1", "http://h:80/x", "dandi://000123@0.2/sub-1/x.nwb"):
        assert remote.is_url(address) and remote.is_url(Path(address))
        assert remote.url_of(Path(address)) == remote.url_of(address) == address
    assert not remote.is_url("https.nwb") and not remote.is_url(Path("/http:/x"))
