"""The terms of the cost model, each a formula with its units and its source.

Bytes on the wire are those that one device sends. They are those of an optimal ring; latency is not
counted.
"""

from __future__ import annotations


def all_reduce(size: float, devices: int) -> float:
    """Bytes that each device sends to sum `size` bytes over all: 2 (N - 1) / N of them.

    A ring: a reduce-scatter, then an all-gather (Patarasuk and Yuan, "Bandwidth optimal all-reduce
    algorithms for clusters of workstations", 2009, https://doi.org/10.1016/j.jpdc.2008.09.002).

    Args:
        size: bytes of what every device has, and of the sum.
        devices: N.

    >>> all_reduce(8e6, 4)
    12000000.0
    """
    return 2 * (devices - 1) / devices * size


def all_gather(size: float, devices: int) -> float:
    """Bytes that each device sends to gather `size` bytes, of which each has 1/N.

    (N - 1) / N of them, on a ring; source as of `all_reduce`.

    Args:
        size: bytes of the whole.
        devices: N.

    >>> all_gather(8e6, 4)
    6000000.0
    """
    return (devices - 1) / devices * size


def reduce_scatter(size: float, devices: int) -> float:
    """Bytes that each device sends to have its 1/N of the sum of `size` bytes: (N - 1) / N of them.

    Args:
        size: bytes of what every device has.
        devices: N.

    >>> reduce_scatter(8e6, 4)
    6000000.0
    """
    return (devices - 1) / devices * size


def zero_state(
    parameters: float, gradients: float, slots: float, devices: int, stage: int
) -> float:
    """Bytes of parameters, gradients and optimizer slots that a device holds under ZeRO.

    Stage 0 shards nothing, 1 the slots, 2 the gradients too, 3 the parameters too (Rajbhandari et
    al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 2020, figure 1,
    https://arxiv.org/abs/1910.02054). What tfaccel's ``fully_sharded`` stores is counted variable
    by variable; this is its limit where every dimension divides.

    Args:
        parameters: bytes of all parameters.
        gradients: bytes of all gradients.
        slots: bytes of all slots.
        devices: N.
        stage: 0 to 3.

    The first line of the paper's figure: 7.5 billion parameters in mixed precision on 64 devices.

    >>> [round(zero_state(15, 15, 90, 64, stage), 1) for stage in range(4)]
    [120.0, 31.4, 16.6, 1.9]
    """
    whole = [parameters, gradients, slots]
    shards = whole[len(whole) - stage :]
    return sum(whole[: len(whole) - stage]) + sum(shards) / devices


def megatron_block(rows: int, length: int, width: int, bytes_each: int, devices: int) -> float:
    """Bytes that a device sends for one transformer block and step, split over `devices`.

    Four all-reduces of a (rows, length, width) activation: after attention and after the pair of
    dense layers, forward, and before each of them, backward (Shoeybi et al., "Megatron-LM", 2019,
    section 3, https://arxiv.org/abs/1909.08053).

    Args:
        rows: of the batch, of one replica.
        length: of a row.
        width: of the residual stream.
        bytes_each: of a number.
        devices: of the model axis.

    >>> megatron_block(4, 1024, 2048, 2, 8) / 2**20
    112.0
    """
    return 4 * all_reduce(rows * length * width * bytes_each, devices)


def roofline(flops: float, moved: float, peak: float, bandwidth: float) -> float:
    """The minimum seconds of an operation: max(flops / peak, moved / bandwidth).

    Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for
    multicore architectures", 2009 (https://doi.org/10.1145/1498765.1498785).

    Args:
        flops: operations.
        moved: bytes that it reads and writes.
        peak: operations/s.
        bandwidth: bytes/s.

    >>> roofline(2e12, 1e9, peak=1e12, bandwidth=1e9)
    2.0
    """
    return max(flops / peak, moved / bandwidth)


def transfer(sent: float, rate: float) -> float:
    """Seconds to send `sent` bytes at `rate` bytes/s, without latency.

    >>> transfer(3e9, 1.5e9)
    2.0
    """
    return sent / rate
