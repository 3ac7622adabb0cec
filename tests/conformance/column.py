"""Runs every case of the table under one strategy, in this process, and keeps the results.

Usage: python -m tests.conformance.column OUT --strategy NAME --devices N
           [--mesh MESH] [--layouts LAYOUTS] [--communication auto] [--only CASE,CASE]
           [--halved]

The strategy `plain` is Keras without tfaccel. With --halved every optimizer is given half of each
gradient, which a row must show.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import os
import pickle
import shutil
import time
import traceback
from typing import Any

from tests.fallbacks import Fallbacks

_LIMIT_S = 400


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--strategy", default="plain")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--mesh")
    parser.add_argument("--layouts")
    parser.add_argument("--communication", default="auto")
    parser.add_argument("--only", default="")
    parser.add_argument("--halved", action="store_true")
    args = parser.parse_args()

    scope: Any = contextlib.nullcontext
    rank, replicas = 0, 1
    if args.strategy != "plain":
        import tfaccel

        strategy = tfaccel.strategy(
            args.strategy,
            devices=args.devices,
            device_type="cpu",
            mesh=args.mesh,
            layouts=args.layouts,
            communication=args.communication,
            # On a mesh every model's first step would be compared, as the table does itself.
            check="off" if args.mesh else "auto",
        )
        scope, replicas = strategy.scope, strategy.num_replicas_in_sync
        rank = strategy.cluster.rank if getattr(strategy, "cluster", None) else 0

    from tests.conformance.cases import CASES, run_case
    from tests.conformance.scripts import SCRIPTS

    if args.halved:
        halve_gradients()
    chosen = [n for n in args.only.split(",") if n] or [*CASES, *SCRIPTS]
    os.makedirs(args.out, exist_ok=True)
    for name in chosen:
        # A case takes seconds; one that hangs ends with the stacks of all threads.
        faulthandler.dump_traceback_later(_LIMIT_S, exit=True)
        print(f"{name} ...", flush=True)
        started = time.monotonic()
        folder = os.path.join(args.out, "files", name)
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
        path = os.path.join(args.out, f"{name}.rank{rank}.pickle")
        with open(path + ".part", "wb") as file:
            pickle.dump(result, file)
        shutil.move(path + ".part", path)
    faulthandler.cancel_dump_traceback_later()


def halve_gradients() -> None:
    """Makes every optimizer of Keras apply half of each gradient."""
    import keras
    import tensorflow as tf

    plain = keras.optimizers.Optimizer.apply

    def half(gradient: Any) -> Any:
        if isinstance(gradient, tf.IndexedSlices):
            return tf.IndexedSlices(0.5 * gradient.values, gradient.indices, gradient.dense_shape)
        return None if gradient is None else 0.5 * gradient

    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        return plain(self, [half(gradient) for gradient in grads], trainable_variables)

    keras.optimizers.Optimizer.apply = apply


if __name__ == "__main__":
    main()
