"""One process of the benchmark: python worker.py TASK-AS-JSON.

It prints lines of JSON after an @, and trains when a line comes on its standard input.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[2]))  # tfaccel, where it is not installed


def say(found: dict[str, Any]) -> None:
    print("@" + json.dumps(found), flush=True)


def wait() -> None:
    say({"ready": True})
    sys.stdin.readline()


def main() -> None:
    from one_gpu.task import Task

    faulthandler.enable()
    task = Task(**json.loads(sys.argv[1]))
    if task.library == "torch":
        from one_gpu.with_torch import train
    else:
        from one_gpu.with_keras import train
    train(task, say, wait)
    say({"done": True})


if __name__ == "__main__":
    main()
