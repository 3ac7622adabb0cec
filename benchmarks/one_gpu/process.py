"""Runs one task in a separate process, and keeps what it says as it says it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from one_gpu.task import Task

_TAIL = 2500  # characters of what a process printed before it failed
_READY_S = 90.0  # to import a library and build a model


class Process:
    """A task under way: it imports and builds at once, and trains when `go` is called.

    Args:
        task: what it does.
        env: its environment.
    """

    def __init__(self, task: Task, env: Mapping[str, str]) -> None:
        self.task = task
        self._begun = time.monotonic()
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._log = tempfile.TemporaryFile(  # noqa: SIM115  # open while the process runs
            "w+", encoding="utf-8", errors="replace"
        )
        script = str(Path(__file__).with_name("worker.py"))
        self._process = subprocess.Popen(
            [sys.executable, script, json.dumps(asdict(task))],
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def go(self, limit_s: float) -> dict[str, Any]:
        """Lets it train, and returns what it measured before it ended or `limit_s` seconds did."""
        found: dict[str, Any] = {"rounds": [], "status": "failed"}
        end = time.monotonic() + min(_READY_S, limit_s)
        begun = None
        while True:
            try:
                message = self._messages.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                doing = "train" if begun else "get ready"
                found |= {"status": "too late", "error": f"had {limit_s:.0f} s to {doing}"}
                break
            if message is None:
                break
            if message.pop("ready", None):
                found["start_s"] = round(time.monotonic() - self._begun, 1)
                begun, end = time.monotonic(), time.monotonic() + limit_s
                assert self._process.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.write("go\n")
                    self._process.stdin.flush()
            if message.pop("done", None):
                found["status"] = "ok"
                break
            if "step_time_ms" in message:
                found["rounds"].append(message)
            else:
                found |= message
        self.end()
        if found["status"] != "ok":
            self._log.seek(0)
            found["error"] = f"{found.get('error', '')}\n{self._log.read()[-_TAIL:]}".strip()
        found["train_s"] = round(time.monotonic() - begun, 1) if begun else None
        return found

    def end(self) -> None:
        """Ends it and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@"):
                self._messages.put(json.loads(line[1:]))
            else:
                self._log.write(line)
        self._messages.put(None)
