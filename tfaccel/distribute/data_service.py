"""Computes rows of `tf.data` pipelines on workers of a `tf.data` service, with the same batches.

The service guarantees neither order nor the rows of a worker that dies. Neither matters here: it
only computes functions of a row (`own_rows.py`), on numbered parts of global batches.

    cut -> numbered parts -> server of this process -> data workers -> here, put in order

A part that does not return in time is computed here, with the same results. Rows and their order
never depend on the service, only their latency does.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf
from absl import logging

from tfaccel.hardware import cores

WINDOW = 16
"""How many parts may be in flight."""

FIRST_S, LEAST_S, TIMES = 20.0, 2.0, 5.0
"""A part may take `FIRST_S` until one has returned, then `TIMES` as long as the slowest so far, but
at least `LEAST_S`, in seconds."""

_address = ""


def use(address: str) -> None:
    """Computes rows on the workers of a dispatcher from now on.

    Args:
        address: its `host:port`; empty for none.
    """
    global _address
    _address = address


def in_use() -> bool:
    """Whether there is a service."""
    return bool(_address)


def computed_elsewhere(
    cut: tf.data.Dataset, compute: Callable[[Any], Any]
) -> tf.data.Dataset | None:
    """Applies a function to the first part of each element, on the service's workers.

    Args:
        cut: of tuples whose first part is a nest of dense tensors.
        compute: a function of only that part.

    Returns:
        A dataset equal to ``cut.map(lambda part, *rest: (compute(part), *rest))``; None where
        `compute` needs objects that other processes do not have.
    """
    part_spec = cut.element_spec[0]
    compute = tf.autograph.experimental.do_not_convert(compute)
    traced = tf.function(compute).get_concrete_function(part_spec)
    if any(tensor.dtype in (tf.resource, tf.variant) for tensor in traced.captured_inputs):
        return None
    result_spec = cut.map(lambda part, *_: compute(part)).element_spec

    @tf.function
    @tf.autograph.experimental.do_not_convert
    def compute_locally(part: Any) -> Any:
        # In a dataset, as on the service: a plain function is optimized differently and not
        # bit-identical.
        return tf.data.Dataset.from_tensors((part,)).map(compute).get_single_element()

    def rows() -> Iterator[Any]:
        return iter(_Pass(cut, compute, compute_locally, result_spec, _address))

    signature = (result_spec, *cut.element_spec[1:])
    return _that_waits(tf.data.Dataset.from_generator(rows, output_signature=signature), cores())


def _that_waits(dataset: tf.data.Dataset, besides: int) -> tf.data.Dataset:
    """`dataset`, whose generator waits, on its own threads.

    A waiting generator occupies one of the inter-op threads, one per core: two of them would block
    training on two cores.

    Args:
        dataset: to be read.
        besides: the number of threads for the rest of it.
    """
    options = tf.data.Options()
    options.threading.private_threadpool_size = besides + 1
    return dataset.with_options(options)


def begun(elements: Iterator[Any]) -> Iterator[Any]:
    """`elements` of a pass, with the first already read where there is a service.

    A pass over the user's dataset then begins at the same point as without one, even if it will not
    be read: the next one's shuffle depends on it.
    """
    if not in_use():
        return elements
    first = list(itertools.islice(elements, 1))
    return itertools.chain(first, elements)


class _PendingElement(NamedTuple):
    """One element of the cut, and its time."""

    element: Any
    at: float


class _Pass:
    """One pass over the cut.

    Args:
        cut: as above.
        compute: the function that the service computes.
        compute_locally: computes the same in this process.
        result_spec: the structure of its results.
        address: of the service.
    """

    def __init__(
        self,
        cut: tf.data.Dataset,
        compute: Any,
        compute_locally: Any,
        result_spec: Any,
        address: str,
    ) -> None:
        self._spec, self._result_spec = cut.element_spec[0], result_spec
        self._compute, self._compute_locally = compute, compute_locally
        self._address = address
        with tf.device("/CPU:0"):
            self._cut = iter(cut)
        self._pulling = threading.Lock()
        self._changed = threading.Condition()
        self._pending: dict[int, _PendingElement] = {}
        self._completed: dict[int, list[Any]] = {}
        self._next = self._pulled = 0
        self._ended = self._stopped = self._broken = False
        self._error: tf.errors.OpError | None = None  # with which the cut ended
        self._slowest_s = 0.0
        self._missed = 0  # in a row

    def __iter__(self) -> Iterator[Any]:
        threading.Thread(target=self._receive, name="tfaccel data service", daemon=True).start()
        try:
            while (element := self._take()) is not None:
                yield element
        finally:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()

    def _take(self) -> Any:
        """The next element, from the service or not; None at the end."""
        with self._changed:
            while self._next not in self._completed and not self._is_over():
                left = self._seconds_left()
                if left <= 0 or not self._changed.wait(left):
                    break
            rows = self._completed.pop(self._next, None)
        if rows is None:
            if self._next == self._pulled:
                self._pull()
            with self._changed:
                pending = self._pending.get(self._next)
            if pending is None:
                if self._error is not None:
                    raise self._error
                return None
            self._missed += 1
            with tf.device("/CPU:0"):
                rows = tf.nest.flatten(self._compute_locally(pending.element[0]))
        with self._changed:
            element = self._pending.pop(self._next).element
            self._completed.pop(self._next, None)  # late, and computed here meanwhile
            self._next += 1
            self._changed.notify_all()
        return (tf.nest.pack_sequence_as(self._result_spec, rows), *element[1:])

    def _is_over(self) -> bool:
        return self._ended and self._next == self._pulled

    def _seconds_left(self) -> float:
        """How much longer to wait for the next part, in seconds."""
        if self._broken or self._missed > 2:
            return 0.0
        timeout_s = max(LEAST_S, TIMES * self._slowest_s) if self._slowest_s else FIRST_S
        pending = self._pending.get(self._next)
        return timeout_s if pending is None else pending.at + timeout_s - time.monotonic()

    def _pull(self) -> int | None:
        """Takes an element of the cut; its number, or None at the end."""
        with self._pulling:
            element = None
            if not self._ended:
                try:
                    element = next(self._cut, None)
                except tf.errors.OpError as error:  # the next call would skip the failing element
                    self._error = error
            with self._changed:
                number = self._pulled
                if element is None:
                    self._ended = True
                else:
                    self._pending[number] = _PendingElement(element, time.monotonic())
                    self._pulled += 1
                self._changed.notify_all()
        return None if element is None else number

    def _parts(self) -> Iterator[Any]:
        """The numbered parts, for the server of this process.

        When none is outstanding, an unnumbered one follows: its return ends `_receive`, which would
        otherwise wait for workers that have died.
        """
        leaves: list[Any] = []
        while self._may_pull():
            number = self._pull()
            with self._changed:
                if number is None:
                    self._changed.wait_for(lambda: self._stopped)
                    break
                pending = self._pending.get(number)
            if pending is not None:  # it may have been computed here meanwhile
                leaves = tf.nest.flatten(pending.element[0])
                yield (number, *leaves)
        if leaves:
            yield (-1, *leaves)

    def _may_pull(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._pulled < self._next + WINDOW)
            return not self._stopped

    def _receive(self) -> None:
        """Receives results, in any order."""
        try:
            for number, *rows in _through_service(
                self._parts, tf.nest.flatten(self._spec), self._computed, self._address
            ):
                with self._changed:
                    if self._stopped:
                        return
                    pending = self._pending.get(int(number))
                    if pending is not None:
                        self._completed[int(number)] = rows
                        self._missed = 0
                        self._slowest_s = max(self._slowest_s, time.monotonic() - pending.at)
                        self._changed.notify_all()
        except tf.errors.OpError as error:
            logging.warning(
                "tfaccel: input: the data service failed, and rows are computed locally: %s", error
            )
            with self._changed:
                self._broken = True
                self._changed.notify_all()

    def _computed(self, number: Any, *leaves: Any) -> Any:
        part = tf.nest.pack_sequence_as(self._spec, leaves)
        return (number, *tf.nest.flatten(self._compute(part)))


def _through_service(
    parts: Callable[[], Iterator[Any]],
    specs: list[tf.TensorSpec],
    compute: Callable[..., Any],
    address: str,
) -> Iterator[Any]:
    """Results of the workers of the service at `address` for `parts`, as they arrive."""
    service = tf.data.experimental.service
    job = uuid.uuid4().hex
    spec = (tf.TensorSpec([], tf.int64), *specs)
    server_address = _server()
    source = _that_waits(tf.data.Dataset.from_generator(parts, output_signature=spec), 1)
    dataset_id = service.register_dataset(server_address, source, compression=None)
    # A named job is shared: each part goes to one of the workers that request it.
    parts_in = service.from_dataset_id(
        service.ShardingPolicy.OFF,
        server_address,
        dataset_id,
        element_spec=spec,
        job_name=job,
        max_outstanding_requests=1,
    )
    computed = parts_in.map(compute, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    distributed = service.distribute(
        service.ShardingPolicy.OFF, f"grpc://{address}", job, compression=None
    )
    return iter(computed.apply(distributed))


_servers: list[Any] = []


def _server() -> str:
    """The address of the server in this process, from which data workers take parts."""
    service = tf.data.experimental.service
    if not _servers:
        dispatcher = kept(service.DispatchServer(service.DispatcherConfig(port=0)))
        address = dispatcher.target.partition("://")[2]
        config = service.WorkerConfig(dispatcher_address=address, heartbeat_interval_ms=100)
        _servers.extend([dispatcher, kept(service.WorkerServer(config))])
    return str(_servers[0].target.partition("://")[2])


def kept(server: Any) -> Any:
    """`server`, which lives as long as this process.

    Freeing it, even at exit, holds the GIL while it joins its threads, and those that read from
    here wait for the GIL.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(server))
    return server
