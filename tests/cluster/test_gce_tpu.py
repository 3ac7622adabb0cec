"""What a TPU VM is told by the metadata server of Compute Engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tfaccel.cluster import gce_tpu, resolve
from tfaccel.errors import ClusterError

ATTRIBUTES = "/computeMetadata/v1/instance/attributes/"
SLICE = {
    "worker-network-endpoints": "unknown:unknown:10.0.0.4,unknown:unknown:10.0.0.7",
    "agent-worker-number": "1",
}


class Server(HTTPServer):
    """Answers as the metadata server, which refuses requests without its header."""

    attributes: dict[str, str]
    requests = 0

    @property
    def environ(self) -> dict[str, str]:
        """The environment in which it is found."""
        return {"GCE_METADATA_IP": f"127.0.0.1:{self.server_port}"}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.requests += 1
        value = self.server.attributes.get(self.path.removeprefix(ATTRIBUTES))
        allowed = self.headers["Metadata-Flavor"] == "Google"
        self.send_response(200 if value is not None and allowed else 404)
        self.end_headers()
        self.wfile.write((value or "").encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (tmp_path / "accel0").touch()
    monkeypatch.setattr(gce_tpu, "CHIPS", (f"{tmp_path}/accel[0-9]*",))
    gce_tpu._attribute.cache_clear()
    with Server(("127.0.0.1", 0), Handler) as made:
        made.attributes = dict(SLICE)
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_hosts_of_a_slice(server: Server) -> None:
    found = resolve(server.environ)
    assert found is not None
    assert (found.rank, found.source) == (1, gce_tpu.SOURCE)
    assert found.workers == ("10.0.0.4:2222", "10.0.0.7:2222")
    asked = server.requests
    moved = resolve(server.environ | {"TFACCEL_WORKER_PORT": "9000"})
    assert moved is not None
    assert moved.address == "10.0.0.7:9000"
    assert server.requests == asked  # once for each process


@pytest.mark.parametrize(
    "attributes", [{}, {"worker-network-endpoints": "unknown:unknown:10.0.0.4"}]
)
def test_one_host_is_no_cluster(server: Server, attributes: dict[str, str]) -> None:
    server.attributes = attributes
    assert resolve(server.environ) is None


def test_a_place_that_cannot_be(server: Server) -> None:
    server.attributes["agent-worker-number"] = "2"
    with pytest.raises(ClusterError, match=r"agent-worker-number '2' and .* from 0 to 1, among"):
        resolve(server.environ)


def test_pods_and_machines_without_a_tpu_do_not_ask(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    assert resolve(server.environ | pod) is None
    monkeypatch.setattr(gce_tpu, "CHIPS", ("/no/such/accel*",))
    assert resolve(server.environ) is None
    assert server.requests == 0


def test_a_machine_without_that_server(server: Server) -> None:
    server.attributes = {}
    assert resolve({"GCE_METADATA_IP": "127.0.0.1:9"}) is None
