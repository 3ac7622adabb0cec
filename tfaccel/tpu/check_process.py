"""The process of one check: builds, lowers, compiles, and reports the result.

    python -m tfaccel.tpu.check_process '{"target": "model.keras", ...}' 3

writes its result to the open file 3.

It is a separate process because libtpu needs its environment before it is loaded, may crash the
process, and can thus have a time limit.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import traceback
from typing import Any

from tfaccel.errors import TfaccelError
from tfaccel.tpu.compiler import ENVIRONMENT
from tfaccel.tpu.report import Report, size
from tfaccel.tpu.topologies import parse


def main(argv: list[str]) -> int:
    """Checks one target, and writes a report or a mistake as JSON to an open file."""
    os.environ.update(ENVIRONMENT)
    arguments = json.loads(argv[0])
    try:
        outcome: dict[str, Any] = json.loads(checked(**arguments).to_json())
        del outcome["limit"], outcome["unknown"]
    except TfaccelError as error:
        outcome = {"mistake": str(error)}
    except Exception as error:  # anything that the model's own code raises
        traceback.print_exc()
        outcome = {"mistake": error_line(arguments["target"], error)}
    with open(int(argv[1]), "w") as file:
        json.dump(outcome, file)
    return 0


def error_line(target: str, error: Exception) -> str:
    """One line on an error in building a model or tracing its step."""
    from tfaccel.tpu.source_location import own_line

    seen = traceback.extract_tb(error.__traceback__)
    place = own_line((frame.filename, str(frame.lineno), frame.name) for frame in seen)
    # Keras surrounds the reason with the layer and its arguments, in separate paragraphs.
    plain = re.sub(r"\x1b\[\d*m", "", str(error))
    reason = " ".join(plain.split("Arguments received by")[0].split())[:500].rstrip(".")
    return (
        f"tfaccel: {target} cannot be checked{place}: {type(error).__name__}: {reason}; "
        "expected a model whose fit would run on one device."
    )


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

    from tfaccel.target import load
    from tfaccel.tpu import compiler, dynamic, error_attribution, lower
    from tfaccel.tpu.search import largest

    if mixed_bfloat16:
        keras.config.set_dtype_policy("mixed_bfloat16")
    parsed = parse(topology)
    loaded = load(target, shape, dtype)
    fields: dict[str, Any] = {
        "target": target,
        "topology": str(parsed),
        "batch": batch,
        "parameters": loaded.model.count_params(),
        "notes": loaded.notes,
    }

    def compiled(lowered: lower.Lowered) -> compiler.Compiled:
        executable = compiler.compile_for(lowered, parsed)
        if executable.memory.total > parsed.hbm:
            raise compiler.TooBigError(executable.memory.total)
        return executable

    def fits(rows: int) -> bool:
        try:
            compiled(lower.lower(loaded, rows))
        except compiler.TooBigError:
            return False
        return True

    def cost(selection: dynamic.Selection) -> str:
        """What an operation costs when it is compiled alone."""
        lone = lower.alone(selection, batch)
        if "memory" not in fields or lone is None:
            return "memory and compile time"
        try:
            executable = compiled(lone)
        except compiler.TooBigError as error:
            return f"{size(error.needed)} of each device alone"
        needed, seconds = executable.memory.total, executable.seconds
        return f"{size(needed)} of each device and {seconds:.1f} s of compiling"

    selections: tuple[dynamic.Selection, ...] = ()
    try:
        lowered = lower.lower(loaded, batch)
        selections = lowered.selections
        program = compiled(lowered)
    except error_attribution.UnsupportedError as error:
        fields |= {"verdict": "refused", "why": str(error)}
    except compiler.RefusedError as error:
        fields |= {"verdict": "refused", "why": f"TPU compiler: {error}"}
    except compiler.TooBigError as error:
        fields |= {"verdict": "too big", "needed": error.needed}
        if search:
            fields["fitting"] = largest(fits, batch, parsed.devices)
    else:
        fields |= {
            "needed": program.memory.total,
            "memory": program.memory,
            "flops": program.flops,
            "collectives": program.collectives,
            "seconds": program.seconds,
        }
    fields["warnings"] = tuple(one.warning(cost(one)) for one in selections)
    return Report(**fields, host=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
