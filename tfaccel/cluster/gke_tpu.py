"""The hosts of a TPU slice, from the variables of Google Kubernetes Engine and KubeRay.

``TPU_WORKER_HOSTNAMES`` lists them; ``TPU_WORKER_ID`` is the index of this one. A slice of one host
is not a cluster.

It describes the hosts, not the cores of the TPU: under ``TPUStrategy`` one process drives the whole
slice, by its name (see `tpu_address`), and the other hosts run TensorFlow's servers. This resolver
is for jobs in which every host runs the script.
"""

from __future__ import annotations

from collections.abc import Mapping

from tfaccel.cluster.cluster import Cluster
from tfaccel.cluster.worker_port import worker_port
from tfaccel.errors import ClusterError

SOURCE = "GKE TPU"
VARIABLES = ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID")
NEEDS = "TPU_WORKER_HOSTNAMES with more than one host"


def resolve(environ: Mapping[str, str]) -> Cluster | None:
    """Reads the hosts of this slice.

    Args:
        environ: an environment, for example ``os.environ``.

    Returns:
        The cluster, or None without a slice of several hosts.

    Raises:
        ClusterError: this host is not among them.

    >>> resolve({"TPU_WORKER_HOSTNAMES": "t-0,t-1", "TPU_WORKER_ID": "1"})
    Cluster(workers=('t-0:2222', 't-1:2222'), rank=1, source='GKE TPU')
    """
    listed = environ.get("TPU_WORKER_HOSTNAMES", "")
    # Some entries are `host:port`, with the port of libtpu.
    hosts = [name.strip().partition(":")[0] for name in listed.split(",") if name.strip()]
    if len(hosts) < 2:
        return None
    place = environ.get("TPU_WORKER_ID", "").strip()
    if not place.isdecimal() or int(place) >= len(hosts) or len(set(hosts)) != len(hosts):
        raise ClusterError(
            f"tfaccel: TPU_WORKER_ID is {place!r} and TPU_WORKER_HOSTNAMES {listed!r}; expected "
            f"this host's place, from 0 to {len(hosts) - 1}, among hosts that differ; unset both "
            "to train on this host alone."
        )
    port = worker_port(environ)
    return Cluster(tuple(f"{host}:{port}" for host in hosts), int(place), SOURCE)
