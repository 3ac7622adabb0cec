"""The default port of workers that have a host each."""

from __future__ import annotations

from collections.abc import Mapping

from tfaccel.errors import ClusterError

DEFAULT = 2222
"""As in TensorFlow's own examples."""


def worker_port(environ: Mapping[str, str]) -> int:
    """``TFACCEL_WORKER_PORT``, else `DEFAULT`.

    Raises:
        ClusterError: it is not a port.

    >>> worker_port({}), worker_port({"TFACCEL_WORKER_PORT": "3333"})
    (2222, 3333)
    """
    port = environ.get("TFACCEL_WORKER_PORT", "").strip() or str(DEFAULT)
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ClusterError(
            f"tfaccel: TFACCEL_WORKER_PORT is {port!r}; expected a port from 1 to 65535; set it to "
            f"one that is free on every host, or unset it for {DEFAULT}."
        )
    return int(port)
