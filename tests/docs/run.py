"""Runs the Python blocks of all pages, each session in a separate process.

Usage: python -m tests.docs.run OUT

TensorFlow is imported once, and the processes are forked from this one: nothing has started a
device before. Each writes a line of JSON for a block when it has ended: its name, and the
traceback of its error, if there was one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.docs import given
from tests.docs.fences import Fence, all_fences

LIMIT_S = 180.0  # of one session


def sessions() -> dict[str, list[list[Fence]]]:
    """The blocks to run, in order, by session: each with the blocks of other pages that are equal.

    Where two pages have the same session, it is run once.
    """
    by_name: dict[str, list[Fence]] = {}
    for fence in all_fences("python"):
        if "no_run" not in fence.settings:
            by_name.setdefault(fence.session, []).append(fence)
    equal: dict[Any, list[list[Fence]]] = {}
    for blocks in by_name.values():
        said = tuple((b.text, b.printed, tuple(sorted(b.settings.items()))) for b in blocks)
        equal.setdefault(said, []).append(blocks)
    return {
        " and ".join(blocks[0].session for blocks in alike): [
            list(b) for b in zip(*alike, strict=True)
        ]
        for alike in equal.values()
    }


def run_session(blocks: Sequence[Sequence[Fence]], out: Path) -> None:
    """Runs the blocks of one session in as many processes as it has workers."""
    workers = int(blocks[0][0].settings.get("workers", 1))
    environments = _environments(workers)
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.flush()
        children = []
        for rank, environment in enumerate(environments):
            child = os.fork()
            if child == 0:
                _child(blocks, Path(folder), environment, out / f"rank-{rank}.jsonl")
            children.append(child)
        deadline = time.monotonic() + LIMIT_S
        for child in children:
            _wait(child, deadline)


def _environments(workers: int) -> list[dict[str, str]]:
    if workers == 1:
        return [{}]
    from tfaccel.launch.environment import worker_environment
    from tfaccel.launch.ports import free_ports

    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    job = {"job_id": "docs", "secret": "docs", "start_timeout_s": 60.0}
    common = {"workers": addresses, "cores": 2, **job}
    return [worker_environment({}, rank=rank, **common) for rank in range(workers)]


def _child(
    blocks: Sequence[Sequence[Fence]], folder: Path, more: dict[str, str], out: Path
) -> None:
    """Runs the blocks and ends the process, whatever happens."""
    try:
        os.setsid()
        os.chdir(folder)
        os.environ.update(more)
        given.prepare(folder)
        names = given.names()
        for block in blocks:
            error = _run(block[0], names)
            with open(out, "a", encoding="utf-8") as file:
                file.writelines(json.dumps([one.name, error]) + "\n" for one in block)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _run(block: Fence, names: dict[str, object]) -> str:
    """What went wrong; an empty text for nothing."""
    wanted = block.settings.get("raises")
    # So that a traceback counts lines as the page does.
    code = "\n" * (block.line - 1) + block.text
    said = io.StringIO()
    kept = contextlib.nullcontext() if block.printed is None else contextlib.redirect_stdout(said)
    try:
        with kept:
            exec(compile(code, block.page, "exec"), names)
    except SystemExit as end:
        return "" if end.code in (None, 0) else f"the block ended with {end.code!r}"
    except Exception as error:
        if wanted is not None and wanted in str(error):
            return ""
        return traceback.format_exc()
    if wanted is not None:
        return f"the block did not raise an error that says {wanted!r}"
    if block.printed is not None and said.getvalue().split() != block.printed.split():
        return f"the block printed\n{said.getvalue()}\nand the page shows\n{block.printed}"
    return ""


def _wait(child: int, deadline: float) -> None:
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
        time.sleep(0.02)


def main(out: Path) -> None:
    """Runs all sessions, one after the other."""
    for name, blocks in sessions().items():
        start = time.monotonic()
        run_session(blocks, out)
        print(f"{time.monotonic() - start:5.1f} s  {name}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
