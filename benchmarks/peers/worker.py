"""One worker: takes a core of its own, then starts its library and trains.

    python worker.py '{"model": "mlp", ...}'

Prints its result as JSON, on the last line.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    given = json.loads(sys.argv[1])
    # First of all: libraries size their thread pools by the cores that they find.
    os.sched_setaffinity(0, {given["core"]})
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from peers.work import Task

    task = Task(**given)
    if task.library == "torch":
        from peers.with_torch import train
    elif task.library == "tensorflow":
        from peers.with_tensorflow import train
    else:
        from peers.with_keras import train
    print(json.dumps(train(task)), flush=True)


if __name__ == "__main__":
    main()
