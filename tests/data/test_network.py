"""Check of which hosts answer: on this machine alone."""

import http.server
import socket
import threading

import pytest

from bn_vuln.data.tfds import network


@pytest.fixture
def port():
    """A port of this machine with a server."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port():
    """A port of this machine without a server."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_hosts_answer_or_do_not(port, closed_port):
    assert network.unreachable([f"http://127.0.0.1:{port}/a", f"https://127.0.0.1:{port}/b"]) == []
    assert network.unreachable([f"http://127.0.0.1:{closed_port}/a"]) == ["127.0.0.1"]
    assert network.unreachable([]) == []


def test_hosts_are_named_once_in_order(monkeypatch):
    def refuse(*_, **__):
        raise OSError

    monkeypatch.setattr(socket, "create_connection", refuse)
    urls = ["https://b.org/1", "ftp://a.org/2", "http://b.org/3"]
    assert network.unreachable(urls) == ["b.org", "a.org"]


def test_ports_are_those_of_the_scheme(monkeypatch):
    asked = []

    def connect(address, timeout):
        asked.append(address)
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    urls = ["http://a.org/", "https://b.org/", "ftp://c.org/", "http://d.org:81/x", "gs://bucket/x"]
    assert network.unreachable(urls) == []
    google = "storage.googleapis.com"
    assert sorted(asked) == [("a.org", 80), ("b.org", 443), ("c.org", 21), ("d.org", 81), (google, 443)]


def test_a_name_server_that_never_answers_is_not_waited_for(monkeypatch):
    """Without the time limit this test would not end."""
    released = threading.Event()
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: released.wait() and socket.socket())
    try:
        assert network.unreachable(["https://a.org/", "https://b.org/"], seconds=0.05) == ["a.org", "b.org"]
    finally:
        released.set()


@pytest.mark.parametrize(("status", "expected"), [(404, []), (503, ["files.org"])])
def test_behind_a_proxy_the_proxy_is_asked(monkeypatch, status, expected):
    asked = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        assert network.unreachable(["http://files.org/a.gz"], seconds=5) == expected
        server.shutdown()
    assert asked == ["http://files.org/"]


def test_behind_a_proxy_that_is_down_no_host_answers(monkeypatch, closed_port):
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{closed_port}")
    assert network.unreachable(["https://files.org/a.gz"]) == ["files.org"]
