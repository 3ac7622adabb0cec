"""The process of one check: builds, lowers, compiles, and says what came of it.

    python -m tfaccel.tpu.worker '{"target": "model.keras", ...}' result.json

A process of its own, because libtpu wants its environment before it is loaded, may end the process,
and can be given a time limit.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from tfaccel.errors import TfaccelError
from tfaccel.tpu.compiler import ENVIRONMENT
from tfaccel.tpu.report import Report
from tfaccel.tpu.topologies import parse


def main(argv: list[str]) -> int:
    """Checks one target, and writes a report or a mistake as JSON."""
    os.environ.update(ENVIRONMENT)
    given, path = json.loads(argv[0]), Path(argv[1])
    try:
        found: dict[str, Any] = json.loads(checked(**given).to_json())
        del found["limit"], found["unknown"]
    except TfaccelError as error:
        found = {"mistake": str(error)}
    path.write_text(json.dumps(found))
    return 0


def checked(
    target: str,
    batch: int,
    topology: str,
    shape: list[int] | None,
    dtype: str,
    mixed_bfloat16: bool,
    search: bool,
) -> Report:
    """Checks one target in this process."""
    import keras

    from tfaccel.tpu import blame, compiler, lower
    from tfaccel.tpu.search import largest
    from tfaccel.tpu.target import load

    if mixed_bfloat16:
        keras.config.set_dtype_policy("mixed_bfloat16")
    wanted = parse(topology)
    asked = load(target, shape, dtype)
    said: dict[str, Any] = {
        "target": target,
        "topology": str(wanted),
        "batch": batch,
        "parameters": asked.model.count_params(),
        "notes": asked.notes,
    }

    def fits(rows: int) -> bool:
        try:
            compiler.compile_for(lower.lower(asked, rows), wanted)
        except compiler.TooBigError:
            return False
        return True

    try:
        lowered = lower.lower(asked, batch)
        said["warnings"] = lowered.warnings
        compiled = compiler.compile_for(lowered, wanted)
    except blame.UnsupportedError as error:
        said |= {"verdict": "refused", "why": str(error)}
    except RuntimeError as error:
        said |= {"verdict": "refused", "why": f"the TPU's compiler says: {error}"}
    except compiler.TooBigError as error:
        said |= {"verdict": "too big", "needed": error.needed}
        if search:
            said["fitting"] = largest(fits, batch, wanted.devices)
    else:
        memory = compiled.memory
        said |= {
            "verdict": "fits" if memory.total <= wanted.hbm else "too big",
            "needed": memory.total,
            "memory": memory,
            "flops": compiled.flops,
            "collectives": compiled.collectives,
            "seconds": compiled.seconds,
        }
    return Report(**said, host=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
