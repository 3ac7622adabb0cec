"""Runs every case of the table under one strategy, in this process, and keeps the results.

Usage: python -m tests.conformance.column OUT --strategy NAME --devices N
           [--mesh MESH] [--layouts LAYOUTS] [--communication auto] [--only CASE,CASE]

The strategy `plain` is Keras without tfaccel.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import pickle
import shutil
import time
import traceback
from typing import Any

from tests.fallbacks import Fallbacks


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--strategy", default="plain")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--mesh")
    parser.add_argument("--layouts")
    parser.add_argument("--communication", default="auto")
    parser.add_argument("--only", default="")
    asked = parser.parse_args()

    scope: Any = contextlib.nullcontext
    rank, replicas = 0, 1
    if asked.strategy != "plain":
        import tfaccel

        strategy = tfaccel.strategy(
            asked.strategy,
            devices=asked.devices,
            device_type="cpu",
            mesh=asked.mesh,
            layouts=asked.layouts,
            communication=asked.communication,
            # On a mesh every model's first step would be compared, as the table does itself.
            check="off" if asked.mesh else "auto",
        )
        scope, replicas = strategy.scope, strategy.num_replicas_in_sync
        rank = strategy.cluster.rank if getattr(strategy, "cluster", None) else 0

    from tests.conformance.cases import CASES, run_case
    from tests.conformance.scripts import SCRIPTS

    chosen = [n for n in asked.only.split(",") if n] or [*CASES, *SCRIPTS]
    os.makedirs(asked.out, exist_ok=True)
    for name in chosen:
        print(f"{name} ...", flush=True)
        started = time.monotonic()
        folder = os.path.join(asked.out, "files", name)
        os.makedirs(folder, exist_ok=True)
        with Fallbacks() as fallbacks:
            try:
                if name in CASES:
                    result = run_case(CASES[name], scope, folder)
                else:
                    result = SCRIPTS[name](scope, folder)
            except Exception:
                result = {"error": traceback.format_exc()}
        result["fallbacks"] = fallbacks.said
        digest = hashlib.sha256()
        for array in result.get("weights", ()):
            digest.update(array.tobytes())
        result |= {"sha": digest.hexdigest(), "replicas": replicas}
        result["seconds"] = time.monotonic() - started
        path = os.path.join(asked.out, f"{name}.rank{rank}.pickle")
        with open(path + ".part", "wb") as file:
            pickle.dump(result, file)
        shutil.move(path + ".part", path)


if __name__ == "__main__":
    main()
