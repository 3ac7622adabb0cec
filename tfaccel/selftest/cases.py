"""The strategies that `tfaccel test` tries, and how their results are judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One strategy to try.

    Attributes:
        name: what `--only` takes.
        strategy: the strategy's name.
        device_type: the kind of device it runs on.
        devices: how many of them a worker uses; None for the strategy's own choice.
        workers: how many processes.
        mesh: the axes, for a strategy that has them.
        gpus: GPUs required.
        tpus: TPU cores required.
        reference: the case whose numbers it must match.
        rtol: relative tolerance.
    """

    name: str
    strategy: str
    device_type: str = "cpu"
    devices: int | None = None
    workers: int = 1
    mesh: str | None = None
    gpus: int = 0
    tpus: int = 0
    reference: str = "one_device"
    rtol: float = 1e-4


# GPUs are compared with one GPU, since they multiply matrices in TF32. A TPU uses bfloat16 there
# and has no strategy for one core, hence its tolerance.
CASES = (
    Case("one_device", "one_device"),
    Case("mirrored-2-cpus", "mirrored", devices=2),
    Case("multi_worker_mirrored-2-workers", "multi_worker_mirrored", devices=1, workers=2),
    Case("model_parallel-4-cpus", "model_parallel", devices=4, mesh="batch=2,model=2"),
    Case("model_parallel-2-workers", "model_parallel", devices=1, workers=2, mesh="model=2"),
    Case("one_device-gpu", "one_device", "gpu", gpus=1, reference="one_device-gpu"),
    Case("mirrored-gpus", "mirrored", "gpu", gpus=2, reference="one_device-gpu"),
    Case(
        "model_parallel-gpus",
        "model_parallel",
        "gpu",
        gpus=2,
        mesh="model=-1",
        reference="one_device-gpu",
    ),
    Case("tpu", "tpu", "tpu", tpus=1, rtol=1e-2),
)


@dataclass(frozen=True)
class Trained:
    """What one worker has when training ends.

    Attributes:
        loss: the last epoch's.
        checksum: a sum over all weights that depends on their values and their order.
        digest: a hash of the weights' bits.
    """

    loss: float
    checksum: float
    digest: str


def missing(case: Case, gpus: int, tpus: int) -> str:
    """Why this machine cannot hold a case; ``""`` if it can.

    >>> missing(Case("mirrored-gpus", "mirrored", gpus=2), gpus=1, tpus=0)
    'GPUs needed: 2, found: 1'
    """
    if case.gpus > gpus:
        return f"GPUs needed: {case.gpus}, found: {gpus}"
    if case.tpus > tpus:
        return f"TPU cores needed: {case.tpus}, found: {tpus}"
    return ""


def verdict(reference: Trained, workers: Sequence[Trained], rtol: float = 1e-4) -> str:
    """What differs between one device and the workers of a case; ``""`` when nothing does.

    >>> one, other = Trained(0.5, 9.0, "a"), Trained(0.6, 9.0, "a")
    >>> verdict(one, [other])
    'loss is 0.6, on one device 0.5'
    """
    if len({worker.digest for worker in workers}) > 1:
        return "the workers ended with different weights"
    for what in ("loss", "checksum"):
        expected, actual = getattr(reference, what), getattr(workers[0], what)
        if not math.isclose(expected, actual, rel_tol=rtol):
            where = "loss" if what == "loss" else "the weights' checksum"
            return f"{where} is {actual:.7g}, on one device {expected:.7g}"
    return ""
