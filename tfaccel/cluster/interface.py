"""Where a worker listens: on loopback in a job of one machine, else on its own address alone."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from tfaccel.cluster.cluster import Cluster

EVERYWHERE = ""


def own_address(cluster: Cluster) -> str:
    """The address of this machine at which the other workers reach it; `EVERYWHERE` if unknown."""
    hosts = _hosts(cluster)
    return address_of(hosts[cluster.rank], hosts)


def is_local(cluster: Cluster) -> bool:
    """Whether the workers reach each other on this machine alone.

    >>> is_local(Cluster(("localhost:2222", "[::1]:2223"), 0, "example"))
    True
    """
    return _all_loopback(_hosts(cluster))


def address_of(host: str, hosts: Sequence[str]) -> str:
    """The address of `host`, which is this machine, at which all `hosts` reach it.

    Args:
        host: name or address.
        hosts: of all workers.

    Returns:
        A loopback address where all of them name this machine that way; `EVERYWHERE` where the name
        resolves to no address of this machine (behind a NAT), or only to a loopback one (Debian's
        ``/etc/hosts``), at which the others would not reach it.

    >>> address_of("127.0.0.1", ["127.0.0.1", "127.0.0.1"])
    '127.0.0.1'
    >>> address_of("127.0.1.1", ["127.0.1.1", "10.0.0.2"])
    ''
    """
    local = _all_loopback(hosts)
    for address in _addresses(host):
        if _is_loopback(address) == local and _is_ours(address):
            return address
    return EVERYWHERE


def listen(address: str, port: int, backlog: int) -> socket.socket:
    """Listens at a local address, or `EVERYWHERE`.

    Raises:
        OSError: the port is in use.
    """
    if address:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family, backlog=backlog)
    try:
        # IPv4 and IPv6 where the machine has both, else IPv4.
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
        )
    except ValueError:
        return socket.create_server(("", port), backlog=backlog)


def _hosts(cluster: Cluster) -> list[str]:
    return [cluster.host_and_port(rank)[0] for rank in range(cluster.size)]


def _all_loopback(hosts: Sequence[str]) -> bool:
    return all(host == "localhost" or _is_loopback(host) for host in set(hosts))


def _addresses(host: str) -> list[str]:
    try:
        records = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(address[0]) for _, _, _, _, address in records]


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _is_ours(address: str) -> bool:
    try:
        with listen(address, 0, 1):
            return True
    except OSError:
        return False
