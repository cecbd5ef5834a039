"""A local web server for the tests of downloads."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Handler(BaseHTTPRequestHandler):
    """``/<accident>/<name>`` sends ``server.files[name]``, with the accidents that transfers have."""

    def do_GET(self):
        self.server.asked.append(self.path)
        accident, name = self.path.split("/")[1], self.path.split("/")[-1]
        if name not in self.server.files:
            return self.send_error(404)
        body = self.server.files[name]
        self.send_response(200)
        if accident not in ("unannounced", "unannounced-cut"):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if accident in ("cut", "unannounced-cut"):
            body = body[: len(body) // 2]
        if accident == "corrupt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A running server: ``url`` is its address, ``files`` what it has, ``asked`` the paths that it was asked for."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.url, server.files, server.asked = f"http://127.0.0.1:{server.server_port}", {}, []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def closed_port(monkeypatch):
    """An address where nothing listens, as on a machine without network."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        return f"http://127.0.0.1:{server.server_port}"
