"""oneDNN's kernels: who turns them on, and that TensorFlow heeds it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support import environment
from tfaccel import onednn
from tfaccel.launch import local

SCRIPT = """
import json, os, sys
from tfaccel import onednn
onednn.is_faster = lambda: True
if sys.argv[1] == "late":
    import tensorflow
import tfaccel
strategy = tfaccel.strategy("one_device")
said = tfaccel.describe(strategy)
from tfaccel.distribute import _private
on = bool(_private.is_onednn_enabled())
print(json.dumps([on, os.environ.get(onednn.VARIABLE), "kernels" in said]))
"""


def _ran(when: str, **variables: str) -> tuple[bool, str | None, bool]:
    """Whether oneDNN computes, what the environment says, and whether the strategy complains."""
    env = environment()
    env.pop(onednn.VARIABLE, None)
    command = [sys.executable, "-c", SCRIPT, when]
    done = subprocess.run(command, env={**env, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    on, variable, complains = json.loads(done.stdout.splitlines()[-1])
    return on, variable, complains


def test_a_strategy_that_comes_first_turns_them_on() -> None:
    assert _ran("first") == (True, "1", False)


def test_the_users_setting_stays() -> None:
    assert _ran("first", TF_ENABLE_ONEDNN_OPTS="0") == (False, "0", False)


def test_a_strategy_that_comes_too_late_logs_a_warning() -> None:
    on, variable, complains = _ran("late")
    assert variable is None
    assert complains is not on  # some processors have them on by themselves


@pytest.mark.parametrize(("gains", "expected"), [(True, "1"), (False, "unset")])
def test_workers_have_them_where_the_processor_gains(
    gains: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(onednn, "is_faster", lambda: gains)
    monkeypatch.delenv(onednn.VARIABLE, raising=False)
    asks = f"import os; print(os.environ.get({onednn.VARIABLE!r}, 'unset'))"
    assert local.run([sys.executable, "-c", asks], nproc=1) == 0
    assert expected in capfd.readouterr().out
