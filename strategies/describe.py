"""A summary of the chosen strategy: its devices, its options, and the reasons."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from dataclasses import dataclass

import tensorflow as tf
from absl import logging

from tfaccel import onednn
from tfaccel.cluster.cluster import cluster_of
from tfaccel.distribute import _private
from tfaccel.strategies.selection import Selection


@dataclass(frozen=True)
class Description:
    """The description of a strategy created by tfaccel."""

    selection: Selection
    replicas: int
    policy: str

    def __str__(self) -> str:
        """Renders it as text."""
        choice, options = self.selection.choice, self.selection.options
        devices, cluster = self.selection.devices, self.selection.cluster
        device_names = "all cores" if devices == ("TPU",) else ", ".join(devices)
        mesh = options.mesh
        over = f"replicas   {self.replicas}" if mesh is None else f"mesh       {mesh}"
        lines = [
            f"strategy   {choice.name} ({choice.reason})",
            f"{over}: {device_names}",
            f"precision  {self.policy}",
        ]
        if cluster is not None and cluster.size > 1:
            workers = ", ".join(cluster.workers)
            lines[1] += f" on each of {cluster.size} workers"
            lines.insert(2, f"workers    {workers} (this is worker {cluster.rank})")
        if self.replicas > 1:
            on_tpu = choice.name == "tpu"
            transport = "over the TPU's own links" if on_tpu else options.communication
            lines.append(f"all-reduce {transport}")
            if options.gradient_compression is not None:
                lines[-1] += f", gradients as {options.gradient_compression}"
            if options.gradient_accumulation == "local":
                lines[-1] += ", once for each update of an optimizer that accumulates"
            if options.local_steps > 1:
                lines[-1] += f", parameters only, every {options.local_steps} steps"
        if options.partial_batch in _BATCHES:
            lines.append(f"batches    {_BATCHES[options.partial_batch]}")
        if options.input == "per_worker":
            lines.append("input      each worker's own part of every global batch")
        if self.replicas > 1 and options.batch_norm == "synchronized":
            lines.append("statistics BatchNormalization over the global batch")
        if options.rematerialization is not None:
            what = "layers are" if options.rematerialization == "full" else "activations are"
            lines.append(f"memory     {what} computed again in the backward pass")
        if choice.name == "tpu":
            lines.append(f"steps      {options.steps_per_execution or 'up to 32'} in one call")
        if mesh is not None:
            layouts = options.layouts
            layouts = layouts if isinstance(layouts, (str, type(None))) else f"{len(layouts)} rules"
            lines.append(f"layouts    {layouts or 'auto'}")
        if options.seed is not None:
            lines.append(f"seed       {options.seed}")
        if devices[0].startswith("CPU") and _slower_kernels():
            lines.append(
                "kernels    not oneDNN's, which are faster on this processor: set "
                f"{onednn.VARIABLE}=1, or create the strategy before TensorFlow is imported"
            )
        return "\n".join(lines)


def _slower_kernels() -> bool:
    return (
        onednn.is_faster()
        and onednn.VARIABLE not in os.environ
        and not _private.is_onednn_enabled()
    )


_BATCHES = {
    "pad": "of one shape, padded with zero-weight rows",
    "drop": "of one shape, smaller ones are left out of training",
}
_made: weakref.WeakKeyDictionary[tf.distribute.Strategy, Description] = weakref.WeakKeyDictionary()


def remember(
    strategy: tf.distribute.Strategy,
    selection: Selection,
    policy: str,
) -> None:
    """Keeps the description of a strategy, and logs it."""
    replicas = int(strategy.num_replicas_in_sync)
    _made[strategy] = Description(selection, replicas, policy)
    logging.info("tfaccel\n%s", _made[strategy])
    if hasattr(strategy, "used"):
        atexit.register(_warn_if_unused, weakref.ref(strategy))


def _warn_if_unused(reference: weakref.ref[tf.distribute.Strategy]) -> None:
    """Warns a script that created a strategy and then trained without it.

    Not after an error.
    """
    strategy = reference()
    if strategy is not None and not strategy.used and not hasattr(sys, "last_value"):
        logging.warning(
            "tfaccel: nothing was trained under strategy %r; build and compile the model inside "
            "`with strategy.scope():`.",
            _made[strategy].selection.choice.name,
        )


def describe(strategy: tf.distribute.Strategy) -> str:
    """Describes `strategy`: its name and the reason, its devices and workers, its precision.

    Args:
        strategy: what `tfaccel.strategy` returned, or any `tf.distribute.Strategy`.
    """
    if strategy in _made:
        return str(_made[strategy])
    return f"strategy   {type(strategy).__name__} (not created by tfaccel)"


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes files and reports for all workers."""
    return cluster_of(strategy).is_chief
