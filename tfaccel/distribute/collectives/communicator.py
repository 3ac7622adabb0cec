"""The workers of a job over MPI, in arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfaccel.distribute.collectives.buffers import Buffers, spans


class Communicator:
    """Sums, gathers and broadcasts arrays over all workers; all must make the same calls.

    Args:
        comm: an `mpi4py.MPI.Comm`.
        before_collective: called before each collective, with its name and size.
    """

    def __init__(self, comm: Any, begin: Callable[[str], None] = lambda what: None) -> None:
        from mpi4py import MPI  # an optional dependency; the caller has started it

        self._comm = comm
        self._in_place = MPI.IN_PLACE
        self._begin = begin
        self._buffers = Buffers()
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()

    def broadcast_object(self, value: Any) -> Any:
        """Worker 0's `value`, any object that can be pickled."""
        return self._comm.bcast(value)

    def all_gather_object(self, value: Any) -> list[Any]:
        """The value of every worker, any object that can be pickled."""
        return list(self._comm.allgather(value))

    def sum(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Sums each array over all workers, all in one message.

        Args:
            arrays: of one dtype that MPI can add; the same shapes on every worker.

        Returns:
            The sums, in memory that is reused when they are no longer referenced.
        """
        self._begin(f"sum of {sum(a.nbytes for a in arrays)} bytes")
        if len(arrays) == 1:
            (array,) = arrays
            array = np.asarray(array, order="C")
            total = self._buffers.take(array.nbytes).view(array.dtype).reshape(array.shape)
            self._comm.Allreduce(array, total)
            return [total]
        *starts, end = spans([a.nbytes for a in arrays])
        packed = self._buffers.take(end)
        parts = [
            packed[at : at + a.nbytes].view(a.dtype).reshape(a.shape)
            for at, a in zip(starts, arrays, strict=True)
        ]
        for part, array in zip(parts, arrays, strict=True):
            np.copyto(part, array)
        whole = packed[: end - end % arrays[0].itemsize].view(arrays[0].dtype)
        self._comm.Allreduce(self._in_place, whole)
        return parts

    def exchange(self, parts: np.ndarray) -> np.ndarray:
        """Sends row `r` to worker `r`.

        Args:
            parts: `(workers, ...)`, the same shape and dtype on every worker.

        Returns:
            The rows sent to this worker, in rank order.
        """
        self._begin(f"exchange of {parts.nbytes} bytes")
        parts = np.asarray(parts, order="C")
        received = self._buffers.take(parts.nbytes)
        self._comm.Alltoall(parts.reshape(-1).view(np.uint8), received)
        return received.view(parts.dtype).reshape(parts.shape)

    def all_gatherv(self, array: np.ndarray) -> np.ndarray:
        """Concatenates the arrays of all workers, in rank order.

        Args:
            array: `(length,)`, the same length and dtype on every worker.
        """
        self._begin(f"all_gatherv of {array.nbytes} bytes")
        received = self._buffers.take(array.nbytes * self.size)
        self._comm.Allgather(np.asarray(array, order="C").view(np.uint8), received)
        return received.view(array.dtype)

    def gather(self, array: np.ndarray, axis: int = 0) -> np.ndarray:
        """Concatenates the arrays of all workers, in rank order.

        Args:
            array: of any dtype; its size along `axis` may differ between workers.
            axis: where to concatenate.
        """
        self._begin(f"gather of {array.nbytes} bytes")
        array = np.asarray(array, order="C")
        lengths = np.empty(self.size, np.int64)
        self._comm.Allgather(np.array([array.shape[axis]], np.int64), lengths)
        shapes = [(*array.shape[:axis], int(n), *array.shape[axis + 1 :]) for n in lengths]
        sizes = [int(np.prod(shape)) * array.itemsize for shape in shapes]
        received = np.empty(sum(sizes), np.uint8)
        self._comm.Allgatherv(array.reshape(-1).view(np.uint8), [received, sizes])
        parts = np.split(received, np.cumsum(sizes)[:-1])
        return np.concatenate(
            [p.view(array.dtype).reshape(s) for p, s in zip(parts, shapes, strict=True)], axis
        )

    def broadcast(self, array: np.ndarray) -> np.ndarray:
        """Worker 0's array.

        Args:
            array: of any dtype; the same dtype and shape on every worker.
        """
        self._begin(f"broadcast of {array.nbytes} bytes")
        sent = np.array(array, order="C")  # a copy: it may belong to a tensor
        self._comm.Bcast(sent.reshape(-1).view(np.uint8))
        return sent
