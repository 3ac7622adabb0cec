"""The flags parse to the arguments of `tfaccel.strategy`, and to nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest
from absl import flags as absl_flags

import tfaccel
from tfaccel import flags
from tfaccel.strategies import NAMES


def parsed(*argv: str, **defaults: object) -> absl_flags.FlagValues:
    values = absl_flags.FlagValues()
    flags.define(flag_values=values, **defaults)
    values(["script.py", *argv])
    return values


def options(*argv: str, environ: dict[str, str] | None = None, **defaults: object):
    return flags.options(flag_values=parsed(*argv, **defaults), environ=environ or {})


def test_nothing_given_passes_nothing():
    assert options() == {}


def test_every_flag_reaches_the_strategy_under_its_own_name():
    assert options(
        "--strategy=mirrored",
        "--devices=4",
        "--device_type=cpu",
        "--precision=mixed_bfloat16",
        "--xla",
        "--communication=ring",
        "--seed=7",
        "--nodeterministic",
        "--memory_growth=false",
        "--tpu=local",
    ) == {
        "name": "mirrored",
        "devices": 4,
        "device_type": "cpu",
        "precision": "mixed_bfloat16",
        "xla": True,
        "communication": "ring",
        "seed": 7,
        "deterministic": False,
        "memory_growth": False,
        "tpu": "local",
    }


def test_devices_may_be_named():
    assert options("--devices=GPU:0,GPU:2") == {"devices": "GPU:0,GPU:2"}


@pytest.mark.parametrize(
    ("garden", "ours"),
    [
        ("fp16", "mixed_float16"),
        ("float16", "mixed_float16"),
        ("bf16", "mixed_bfloat16"),
        ("bfloat16", "mixed_bfloat16"),
        ("fp32", "float32"),
    ],
)
def test_model_garden_precisions_are_understood(garden: str, ours: str):
    assert options(f"--precision={garden}") == {"precision": ours}


def test_strategy_names_are_case_insensitive_as_in_the_model_garden():
    assert options("--strategy=Multi_Worker_Mirrored") == {"name": "multi_worker_mirrored"}


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_is_accepted(name: str):
    assert options(f"--strategy={name}") == {"name": name}


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        ("--strategy=off", "one_device"),
        ("--strategy=parameter_server", "Keras 3 does not support it"),
        ("--strategy=central_storage", "Keras 3 does not support it"),
        ("--strategy=collective", "multi_worker_mirrored"),
        ("--strategy=miror", "use one of auto, one_device, mirrored"),
        ("--precision=float64", "use auto, float32, mixed_bfloat16 or mixed_float16"),
        ("--communication=hierarchical_copy", "not one of auto, ring, nccl"),
        ("--device_type=fpga", "not one of auto, cpu, gpu, tpu"),
        ("--devices=0", "--device_type=cpu"),
        ("--devices=-1", "leave the flag out for all"),
        ("--seed=one", "one"),
    ],
)
def test_a_wrong_value_is_refused_with_what_to_do(argument: str, advice: str):
    with pytest.raises(absl_flags.IllegalFlagValueError, match=advice):
        parsed(argument)


def test_defining_twice_changes_nothing():
    values = parsed("--seed=3")
    flags.define(flag_values=values)
    assert flags.options(flag_values=values, environ={}) == {"seed": 3}


def test_a_flag_of_the_same_name_by_someone_else_is_an_error():
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_integer("seed", 0, "Not ours.", flag_values=values)
    with pytest.raises(absl_flags.DuplicateFlagError, match="seed"):
        flags.define(flag_values=values)


def test_a_script_sets_its_own_defaults():
    assert options(precision="bf16", seed=1) == {"precision": "mixed_bfloat16", "seed": 1}


def test_the_command_line_wins_over_the_script_s_default():
    assert options("--seed=2", seed=1) == {"seed": 2}


def test_the_environment_wins_over_the_script_s_default():
    assert options(seed=1, environ={"TFACCEL_SEED": "5"}) == {}
    assert options(seed=1, environ={"TFACCEL_SEED": ""}) == {"seed": 1}


def test_the_command_line_wins_over_the_environment():
    assert options("--seed=2", environ={"TFACCEL_SEED": "5"}) == {"seed": 2}


def test_a_default_for_no_flag_is_an_error():
    with pytest.raises(TypeError, match="no such flag: precison"):
        flags.define(flag_values=absl_flags.FlagValues(), precison="float32")


def test_a_wrong_default_is_an_error():
    with pytest.raises(absl_flags.IllegalFlagValueError, match="'double' is not a precision"):
        parsed(precision="double")


def test_strategy_calls_the_front_desk_with_what_was_given(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def front_desk(**arguments: object) -> str:
        calls.append(arguments)
        return "the strategy"

    monkeypatch.setattr(tfaccel, "strategy", front_desk, raising=False)
    values = parsed("--strategy=mirrored", "--devices=2")
    assert flags.strategy(flag_values=values) == "the strategy"
    assert calls == [{"name": "mirrored", "devices": 2}]


def test_an_impossible_request_ends_the_script_with_one_line():
    with pytest.raises(SystemExit) as end:
        flags.strategy(flag_values=parsed("--strategy=model_parallel", "--mesh=batch=2,modl=x"))
    assert str(end.value).startswith("tfaccel: mesh is 'batch=2,modl=x' ('modl=x' cannot be read)")
    assert "\n" not in str(end.value)


def test_importing_defines_no_flag_and_help_shows_them_with_the_script_s(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from absl import app, flags as absl_flags\n"
        "from tfaccel import flags\n"
        "assert 'strategy' not in absl_flags.FLAGS\n"
        "flags.define()\n"
        "app.run(lambda _: None)\n"
    )
    shown = subprocess.run(
        [sys.executable, script, "--helpshort"], capture_output=True, text=True, timeout=60
    ).stdout
    assert all(f"--{name}" in shown or f"--[no]{name}" in shown for name in flags._FLAGS)


@pytest.mark.parametrize(
    ("argv", "environ", "defaults", "folder"),
    [
        ([], {}, {}, None),
        (["--monitor=run"], {}, {}, "run"),
        ([], {"TFACCEL_MONITOR": "run"}, {}, "run"),
        (["--monitor=one"], {"TFACCEL_MONITOR": "other"}, {}, "one"),
        ([], {"TFACCEL_MONITOR": "other"}, {"monitor": "own"}, "other"),
        ([], {}, {"monitor": "own"}, "own"),
        (["--monitor="], {"TFACCEL_MONITOR": "other"}, {"monitor": "own"}, None),
    ],
)
def test_the_monitor_is_a_callback_and_no_option_of_a_strategy(
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    environ: dict[str, str],
    defaults: dict[str, str],
    folder: str | None,
):
    monkeypatch.setitem(vars(tfaccel), "monitor", lambda *given: given)
    values = parsed(*argv, **defaults)
    assert flags.options(flag_values=values, environ={}) == {}
    made = flags.callbacks("the strategy", flag_values=values, environ=environ)
    assert made == ([] if folder is None else [("the strategy", folder)])
