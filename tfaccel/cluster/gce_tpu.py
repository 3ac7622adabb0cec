"""The hosts of a TPU slice, from the metadata server of Google Compute Engine.

A TPU VM has no variables that describe its slice. The server has, among the attributes of the VM,
``worker-network-endpoints`` (of each host, separated by commas, three fields separated by colons,
the last of which is its address) and ``agent-worker-number`` (the index of this host). JAX and
PyTorch/XLA read the same two. It is asked on machines with a TPU alone.
"""

from __future__ import annotations

import functools
import glob
import http.client
import urllib.request
from collections.abc import Mapping

from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.worker_port import worker_port
from tfaccel.errors import ClusterError

SOURCE = "Compute Engine TPU"
VARIABLES = ("GCE_METADATA_IP",)
NEEDS = "a TPU VM of a slice with more than one host"

CHIPS = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
"""The devices of TPU chips, up to v4 and from v5e on."""
_TIMEOUT_S = 2.0


def resolve(environ: Mapping[str, str]) -> Cluster | None:
    """Reads the hosts of this slice.

    Args:
        environ: an environment; ``GCE_METADATA_IP`` replaces the address of the metadata server,
            as for TensorFlow.

    Returns:
        The cluster, or None without a slice of several hosts, and in a pod of GKE (`gke_tpu`).

    Raises:
        ClusterError: this host is not among them.
    """
    if "TPU_WORKER_HOSTNAMES" in environ or not any(map(glob.glob, CHIPS)):
        return None
    server = environ.get("GCE_METADATA_IP", "metadata.google.internal")
    listed = _attribute(server, "worker-network-endpoints")
    hosts = [entry.strip().rpartition(":")[2] for entry in listed.split(",") if entry.strip()]
    if len(hosts) < 2:
        return None
    place = _attribute(server, "agent-worker-number").strip()
    if not place.isdecimal() or int(place) >= len(hosts) or len(set(hosts)) != len(hosts):
        raise ClusterError(
            f"tfaccel: the metadata server {server} has agent-worker-number {place!r} and "
            f"worker-network-endpoints {listed!r}; expected this host's place, from 0 to "
            f"{len(hosts) - 1}, among hosts that differ; set TF_CONFIG to describe the job "
            "otherwise."
        )
    port = worker_port(environ)
    return Cluster(tuple(f"{host}:{port}" for host in hosts), int(place), SOURCE)


@functools.cache
def _attribute(server: str, name: str) -> str:
    """An attribute of this VM; empty where there is none, or no such server."""
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{name}",
        headers={"Metadata-Flavor": "Google"},
    )
    no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with no_proxy.open(request, timeout=_TIMEOUT_S) as answer:
            return str(answer.read().decode())
    except (OSError, http.client.HTTPException, UnicodeDecodeError):
        return ""
