"""Computes rows of `tf.data` pipelines on workers of a `tf.data` service, with the same batches.

The service guarantees neither order nor the rows of a worker that dies. Neither matters here: it
only computes functions of a row (`own_rows.py`), on numbered parts of global batches.

    part of a batch -> numbered -> server of this process -> data workers -> its rows

A job of the service takes as long to start as many steps do, so all passes over a dataset send
their parts through one. A part that does not return in time is computed here, with the same
results. Rows and their order never depend on the service, only their latency does.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from absl import logging

from tfaccel.hardware import cores

WINDOW = 16
"""How many parts of a pass may be in flight."""

FIRST_S, LEAST_S, TIMES = 20.0, 2.0, 5.0
"""A part may take `FIRST_S` until one has returned, then `TIMES` as long as the slowest so far, but
at least `LEAST_S`, in seconds."""

PART_S, BYTE_S = 1e-3, 2e-9
"""What it takes this process to send a part, and to receive each byte of its rows, in seconds of a
core. What can be computed in less, as the first part shows, is computed here."""

LONG_S = 1.0
"""How long the first part may be computed here to measure that, about, in seconds."""

IDLE_S, AGAIN_S = 10.0, 10.0
"""A job of the service ends after `IDLE_S` without a part; one that fails is followed by another
after `AGAIN_S`, in seconds."""

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
    specs = tf.nest.flatten(result_spec)
    elsewhere = _Elsewhere(part_spec, compute, specs, _address)

    @tf.autograph.experimental.do_not_convert
    def computed(part: Any, *rest: Any) -> Any:
        types = [tf.bool, *(spec.dtype for spec in specs)]
        came, *leaves = tf.py_function(elsewhere.rows, tf.nest.flatten(part), types)

        def received() -> Any:
            rows = [tf.ensure_shape(t, spec.shape) for t, spec in zip(leaves, specs, strict=True)]
            return tf.nest.pack_sequence_as(result_spec, rows)

        return (tf.cond(came, received, lambda: compute(part)), *rest)

    made = cut.map(computed, num_parallel_calls=WINDOW, deterministic=True)
    return _that_waits(made, WINDOW + cores())


def _that_waits(dataset: tf.data.Dataset, threads: int) -> tf.data.Dataset:
    """`dataset`, whose Python functions wait, on its own threads.

    A waiting function occupies one of the inter-op threads, one per core: two of them would block
    training on two cores.
    """
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    return dataset.with_options(options)


class _Elsewhere:
    """The rows of one dataset: of all passes over it, which may overlap.

    Args:
        part_spec: the structure of a part.
        compute: the function that the service computes.
        result_specs: of the tensors of its results.
        address: of the service.
    """

    def __init__(
        self, part_spec: Any, compute: Any, result_specs: list[tf.TensorSpec], address: str
    ) -> None:
        self._part_spec, self._compute, self._address = part_spec, compute, address
        self._none = [tf.constant(False), *(tf.zeros([], spec.dtype) for spec in result_specs)]
        self._deciding = threading.Lock()
        self._is_worth_it: bool | None = None  # not yet known
        self._job: _Job | None = None

    def rows(self, *part: tf.Tensor) -> list[tf.Tensor]:
        """True and the rows of a part; False and anything where they are to be computed here."""
        with self._deciding:
            if self._is_worth_it is None:
                try:
                    self._is_worth_it = self._takes_longer_here(part)
                except tf.errors.OpError:  # of the data: raised where they are computed
                    return self._none
                if not self._is_worth_it:
                    logging.info("tfaccel: input: rows are cheap, and computed here.")
            if not self._is_worth_it:
                return self._none
            if self._job is None or self._job.may_be_followed():
                self._job = _Job(self._part_spec, self._compute, self._address)
            job = self._job
        rows = job.rows(part)
        return self._none if rows is None else [tf.constant(True), *rows]

    def _takes_longer_here(self, leaves: tuple[tf.Tensor, ...]) -> bool:
        """Whether to compute a part takes longer than to send it and to receive its rows."""
        part = tf.nest.pack_sequence_as(self._part_spec, leaves)
        compute = tf.function(self._compute, autograph=False)
        rows: list[tf.Tensor] = []
        took: list[float] = []  # of the processor; the first time it is traced, too
        until = time.monotonic() + LONG_S
        while not took or (len(took) < 6 and time.monotonic() < until):
            began = time.process_time()
            rows = tf.nest.flatten(compute(part))
            took.append(time.process_time() - began)
        size = sum(int(tf.size(each)) * int(each.dtype.size) for each in rows)
        return min(took) > PART_S + size * BYTE_S


class _Part:
    """A part that was sent.

    Attributes:
        at: when.
        done: whether nothing is to come.
        rows: its rows, once they have come.
    """

    def __init__(self) -> None:
        self.at = time.monotonic()
        self.done = threading.Event()
        self.rows: list[tf.Tensor] | None = None


class _Job:
    """A job of the service.

    Args:
        part_spec: as above.
        compute: as above.
        address: as above.
    """

    def __init__(self, part_spec: Any, compute: Any, address: str) -> None:
        self._part_spec, self._compute, self._address = part_spec, compute, address
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._unsent: deque[tuple[Any, ...]] = deque()
        self._sent: dict[int, _Part] = {}
        self._awaited = 0
        self._may_follow_at = math.inf  # known from its end on
        self._slowest_s = 0.0
        self._missed = 0  # in a row
        self._thread = threading.Thread(
            target=self._receive, name="tfaccel data service", daemon=True
        )
        self._thread.start()
        atexit.register(self._exit)

    def may_be_followed(self) -> bool:
        """Whether it has ended, and another may take its place."""
        return time.monotonic() >= self._may_follow_at

    def rows(self, part: tuple[tf.Tensor, ...]) -> list[tf.Tensor] | None:
        """The rows of a part; None where they do not come in time."""
        sent = self._send(part)
        if sent is None:
            return None
        while not sent.done.is_set():
            left = sent.at + self._patience_s() - time.monotonic()
            if left <= 0:
                break
            sent.done.wait(min(left, LEAST_S))  # others may tell how long it takes
        with self._changed:
            self._awaited -= 1
            self._missed += sent.rows is None
            self._changed.notify_all()
        return sent.rows

    def _send(self, part: tuple[tf.Tensor, ...]) -> _Part | None:
        with self._changed:
            if self._is_over() or len(self._unsent) > WINDOW:
                return None
            number = next(self._numbers)
            self._unsent.append((number, *part))
            sent = self._sent[number] = _Part()
            self._awaited += 1
            self._changed.notify_all()
        return sent

    def _patience_s(self) -> float:
        """How long a part may take, in seconds."""
        if self._missed > 2:
            return 0.0
        return max(LEAST_S, TIMES * self._slowest_s) if self._slowest_s else FIRST_S

    def _is_over(self) -> bool:
        return self._may_follow_at < math.inf

    def _exit(self) -> None:
        """Ends it before Python does, on which its threads would wait."""
        self._end()
        self._thread.join(LEAST_S)

    def _end(self, again_s: float = 0.0) -> None:
        with self._changed:
            if not self._is_over():
                self._may_follow_at = time.monotonic() + again_s
            for sent in self._sent.values():
                sent.done.set()
            self._changed.notify_all()

    def _parts(self) -> Iterator[tuple[Any, ...]]:
        """The numbered parts, for the server of this process.

        An unnumbered one is the last: its return ends `_receive`, which would otherwise wait for
        workers that have died.
        """
        leaves: tuple[Any, ...] = ()
        while (sent := self._next()) is not None:
            leaves = sent[1:]
            yield sent
        if leaves:
            yield (-1, *leaves)

    def _next(self) -> tuple[Any, ...] | None:
        """The next part to be sent; None at the end, which nothing to do for long brings."""
        with self._changed:
            while not self._is_over():
                if self._unsent:
                    return self._unsent.popleft()
                if not self._changed.wait(IDLE_S) and not self._awaited:
                    self._end()
        return None

    def _receive(self) -> None:
        """Receives results, in any order."""
        specs = tf.nest.flatten(self._part_spec)
        try:
            for number, *rows in _through_service(
                self._parts, specs, self._computed, self._address
            ):
                if int(number) < 0:
                    break
                with self._changed:
                    sent = self._sent.pop(int(number), _Part())
                    self._missed = 0
                    self._slowest_s = max(self._slowest_s, time.monotonic() - sent.at)
                sent.rows = rows
                sent.done.set()
        except tf.errors.OpError as error:
            logging.warning(
                "tfaccel: input: the data service failed, and rows are computed locally: %s", error
            )
        finally:
            self._end(again_s=AGAIN_S)
            atexit.unregister(self._exit)

    def _computed(self, number: Any, *leaves: Any) -> Any:
        part = tf.nest.pack_sequence_as(self._part_spec, leaves)
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
    source = _that_waits(tf.data.Dataset.from_generator(parts, output_signature=spec), 2)
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
