"""A process of a `tf.data` service, on this machine.

python -m tfaccel.launch.data_worker PORT                # the dispatcher
python -m tfaccel.launch.data_worker PORT OF_DISPATCHER  # a worker
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    """Serves until it is stopped.

    Args:
        argv: the port to listen on; for a worker, also the dispatcher's.
    """
    import tensorflow as tf

    service = tf.data.experimental.service
    port, dispatcher = int(argv[0]), [int(word) for word in argv[1:]]
    server = (
        service.WorkerServer(
            service.WorkerConfig(
                dispatcher_address=f"localhost:{dispatcher[0]}",
                worker_address=f"localhost:{port}",
                port=port,
                heartbeat_interval_ms=1000,
            )
        )
        if dispatcher
        else service.DispatchServer(service.DispatcherConfig(port=port))
    )
    server.join()


if __name__ == "__main__":
    main(sys.argv[1:])
