"""Failure detector: ends this process when another rank has exited or holds up the job.

Nothing else reaches a rank that waits inside MPI, not even a Python exception. A rank that waits in
TensorFlow's collectives gets an exception, which may come late, or never, and names no worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from tfaccel.cluster.coordinator import UNREACHABLE, UNREACHABLE_ERRORS
from tfaccel.cluster.stacks import python_stacks
from tfaccel.cluster.stalls import WAITS, named

_PRINT_DELAY_S = 0.1  # prints nothing where a launcher ends all ranks at once
_EXIT_DELAY_S = 0.3  # so that a launcher first sees the rank that caused the failure
_REPORT_EVERY_S = 1.0
_FINALIZE_TIMEOUT_S = 5.0  # after a rank was lost: MPI has finalized by then or never will
_ABORTING = "aborting this worker"


class FailureDetector:
    """Watches the other ranks while this one works with them.

    Attributes:
        stops_all: whether this rank has ended all others.

    Args:
        connection: to the coordinator, open.
        names: what to call each rank.
        end: ends this process, given a line with the reason; for tests.
        rank: of this process.
        report: the status of this rank, as `stalls.WorkerStatus`; None for no heartbeats.
        on_failure: called with the reason before this process ends, so that what waits for the
            failed rank can raise.
        grace_period_s: how long this process may then take to end by itself, in seconds.
    """

    def __init__(
        self,
        connection: socket.socket,
        names: list[str],
        end: Callable[[str], None] | None = None,
        *,
        rank: int = 0,
        report: Callable[[], Mapping[str, Any]] | None = None,
        on_failure: Callable[[str], None] | None = None,
        grace_period_s: float = 0.0,
    ) -> None:
        self._connection = connection
        self._names = names
        self._end = end or self._end_process
        self._rank = rank
        self._report = report
        self._on_failure = on_failure
        self._grace_period_s = grace_period_s
        self._collectives = 0  # started
        self._collective = ""
        self._last: dict[int, int] = {}  # collectives of each rank that has ended
        self._lost = ""  # a rank that had ended, but not disconnected
        self._finalizing = self.stops_all = False
        self._all_done, self._finalized = threading.Event(), threading.Event()
        self._leaves, self._reported = threading.Event(), threading.Event()
        self._sending = threading.Lock()
        self._descriptor = connection.fileno()
        os.register_at_fork(after_in_child=self._close_in_child)
        self._listener = threading.Thread(
            target=self._listen, name="tfaccel-failure-detector", daemon=True
        )
        self._listener.start()
        self._reporter = threading.Thread(
            target=self._send_heartbeats, name="tfaccel-heartbeat", daemon=True
        )
        if report is not None:
            # Here, since a rank that has never reported is not judged: it may be stopped any time.
            with contextlib.suppress(OSError):  # the listener sees it too
                self._send_heartbeat(report)
            self._reporter.start()

    def before_collective(self, what: str = "") -> None:
        """Call before each collective: one that a rank will never join ends this process.

        Args:
            what: its name and size, printed when the job stalls: ranks may be in different ones.
        """
        self._collectives += 1
        self._collective = what
        if self._last:
            self._check()

    def close(self, finalize: Callable[[], None] = lambda: None) -> None:
        """Reports a regular end, waits until all have, and disconnects.

        Args:
            finalize: ends what all ranks share, before this one disconnects. If a rank is lost
                meanwhile, this process ends even if `finalize` does not return.
        """
        if self._leave():
            self._all_done.wait()
            self._finalizing = True
            if not self._lost:
                finalize()
                self._finalized.set()
                self._disconnect()
                # Python must not exit while the listener thread runs.
                self._listener.join()
            if self._lost:
                self._end(self._lost)

    def leave(self) -> None:
        """Reports a regular end, and does not wait for the others."""
        if self._leave():
            self._disconnect()
            self._listener.join(2.0)

    def stop_all(self, code: int) -> None:
        """Ends all other ranks with an exit code, at once; this one is to end with it too."""
        self.stops_all = True
        with contextlib.suppress(OSError):
            self._send(f"stop {code}")

    def wait_for_failure_report(self, seconds: float) -> None:
        """Waits for the report of a failed rank, after an exception that suggests one."""
        self._reported.wait(seconds)

    def abort(self) -> None:
        """Disconnects without reporting an end when this process exits: the others end too."""
        # Not earlier, since a launcher shows the output of the rank that ends first.
        self._leaves.set()
        self._descriptor = -1
        self._connection.close()

    def _leave(self) -> bool:
        self._leaves.set()
        self._descriptor = -1
        if self._reporter.ident is not None:
            self._reporter.join(2.0)
        try:
            self._send(f"done {self._collectives}")
        except OSError:
            return False
        return True

    def _disconnect(self) -> None:
        with contextlib.suppress(OSError):
            self._send("left")
            self._connection.shutdown(socket.SHUT_RDWR)

    def _send(self, line: str) -> None:
        with self._sending:
            self._connection.sendall(line.encode() + b"\n")

    def _send_heartbeats(self) -> None:
        assert self._report is not None
        with contextlib.suppress(OSError):
            while not self._leaves.wait(_REPORT_EVERY_S):
                self._send_heartbeat(self._report)

    def _send_heartbeat(self, report: Callable[[], Mapping[str, Any]]) -> None:
        self._send(f"at {json.dumps(report())}")

    def _check(self) -> None:
        for rank, last in list(self._last.items()):
            if self._collectives > last:
                self._end(
                    f"{self._names[rank]} has ended after {last} collectives and this worker is in "
                    f"collective {self._collectives}; expected all workers to train, evaluate and "
                    "save in the same order"
                )

    def _listen(self) -> None:
        why = "has exited or disconnected"
        try:
            with self._connection.makefile("r") as stream:
                for line in stream:
                    self._receive(line.rstrip("\n"))
        except OSError as error:
            why = UNREACHABLE if error.errno in UNREACHABLE_ERRORS else why
        except ValueError:
            pass
        finally:
            self._all_done.set()
        if self._finalizing and not self._finalized.is_set():
            self._lose(f"{self._names[0]} {why}")
        if self._leaves.is_set() or (0 in self._last and self._report is not None):
            return  # worker 0 has ended, and the coordinator with its machine
        self._end(f"{self._names[0]} {why}{self._own_place()}")

    def _own_place(self) -> str:
        """What this worker does: what worker 0 did is known only next to it."""
        return f"; this worker was {self._report()['place']}" if self._report is not None else ""

    def _receive(self, line: str) -> None:
        kind, _, arguments = line.partition(" ")
        number, _, detail = arguments.partition(" ")
        if kind == "gone":
            why = f"{self._names[int(number)]} {detail or 'has exited or disconnected'}"
            if int(number) in self._last:
                self._lose(why)
            else:
                self._end(why)
        elif kind == "done":
            self._last[int(number)] = int(detail)
            self._check()
        elif kind == "end":
            self._all_done.set()
        elif kind == "stop":
            self._print_error(
                f"{self._names[int(number)]} received a stop request; stopping all workers"
            )
            sys.stdout.flush()
            os._exit(int(detail))
        elif kind == "slow":
            ranks, why = self._parse_stall(arguments)
            if json.loads(arguments).get("stacks"):
                self._print_stacks()
            others = [rank for rank in range(len(self._names)) if rank not in ranks]
            if self._rank == min(others, default=0):  # one line for the job
                self._print_error(why)
        elif kind == "stall":
            self._stalled(*self._parse_stall(arguments))

    def _lose(self, why: str) -> None:
        """A rank was lost after finishing its work: this one goes on, except for the shared end."""
        self._lost = why
        if self._finalizing and not self._finalized.wait(_FINALIZE_TIMEOUT_S):
            self._end(why)

    def _parse_stall(self, text: str) -> tuple[list[int], str]:
        stall = json.loads(text)
        return list(stall["ranks"]), named(stall["why"], self._names)

    def _print_stacks(self) -> None:
        own_threads = {thread.ident or 0 for thread in (self._listener, self._reporter)}
        title = f"tfaccel: Python stack of worker {self._rank}"
        sys.stderr.write(python_stacks(title, own_threads))
        sys.stderr.flush()

    def _stalled(self, ranks: list[int], why: str) -> None:
        self._print_stacks()
        if self._collectives:
            started = f"has started {self._collectives} collectives, the last: {self._collective}"
            self._print_error(f"worker {self._rank} {started}")
        self._print_error(f"{why}; the Python stack of each worker that answers is above")
        # The rank at fault ends first, so that a launcher shows its output.
        time.sleep(0.0 if self._rank in ranks else 2 * _EXIT_DELAY_S)
        os._exit(1)

    def _print_error(self, text: str) -> None:
        print(f"tfaccel: {text}.", file=sys.stderr, flush=True)

    def _end_process(self, why: str) -> None:
        time.sleep(_PRINT_DELAY_S)
        self._print_error(f"{why}; {_ABORTING}")
        self._reported.set()
        if self._on_failure is not None:
            self._on_failure(f"tfaccel: {why}")
        sys.stdout.flush()
        time.sleep(_EXIT_DELAY_S)
        while self._grace_period_s:
            if self._leaves.wait(self._grace_period_s):
                return  # by an exception, or in order
            if self._report is None or self._report()["state"] in WAITS:
                break
        self._print_stacks()
        os._exit(1)

    def _close_in_child(self) -> None:
        """A forked process must not keep the connection of one that has exited."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
