"""Times all-reduces of one transport, in a dedicated process.

Usage: python -m tfaccel.bench.all_reduce_benchmark TRANSPORT DEVICE_TYPE SIZE,SIZE,...
"""

from __future__ import annotations

import json
import statistics
import sys
import time

_MAX_BYTES, _MAX_REPEATS, _MIN_REPEATS = 1 << 28, 50, 3


def main() -> None:
    """Prints the median seconds of each size, as one line of JSON."""
    import tensorflow as tf

    import tfaccel

    transport, device_type, sizes = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
    strategy = tfaccel.strategy(
        "multi_worker_mirrored", communication=transport, device_type=device_type, devices=1
    )
    strategy.used = True
    seconds = []
    for size in map(int, sizes):
        with tf.device(strategy.extended.worker_devices[0]):
            tensor = tf.Variable(tf.ones([max(size // 4, 1)]), trainable=False)

        @tf.function
        def reduce(tensor: tf.Variable = tensor) -> tf.Tensor:
            def replica() -> tf.Tensor:
                context = tf.distribute.get_replica_context()
                return context.all_reduce(tf.distribute.ReduceOp.SUM, tensor + 0.0)[0]

            return strategy.run(replica)

        spent = []
        # Equally often on every worker: each all-reduce needs all of them.
        for _ in range(2 + min(max(_MAX_BYTES // size, _MIN_REPEATS), _MAX_REPEATS)):
            begun = time.perf_counter()
            strategy.experimental_local_results(reduce())[0].numpy()
            spent.append(time.perf_counter() - begun)
        seconds.append(statistics.median(spent[2:]))
    print("\nseconds " + json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
