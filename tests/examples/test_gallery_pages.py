"""The pages of the gallery show what the scripts are and what they printed; nothing is run here."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.docs import commands
from tests.examples.test_gallery import NUMBER, STATED

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "gallery"
BYTES = 60 * 1024  # of a picture


def module_at(path: str) -> Any:
    """A module that stands in no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOK = module_at("docs/gallery_hook.py")
RESULTS = json.loads((PAGES / "results.json").read_text("utf-8"))
PROMISED = {
    **STATED,
    "digits": (rf"held-out accuracy: {NUMBER}", lambda accuracy: accuracy >= 0.95),
    "digits_fpga": (rf"bit-exact on {NUMBER} of {NUMBER} rows", lambda equal, all_: equal == all_),
    "language_model": (rf", {NUMBER} bits per character", lambda bits: bits <= 2.2),
}


def test_each_example_has_a_page() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == set(HOOK.NAMES) == set(PROMISED)
    index = (ROOT / "docs" / "gallery.md").read_text("utf-8")
    assert [name for name in HOOK.NAMES if f"](gallery/{name}.md)" not in index] == []


@pytest.mark.parametrize("name", PROMISED)
def test_a_page_shows_a_picture_of_modest_size(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text("utf-8")
    (caption,) = re.findall(rf"^<!-- picture: {name} (.{{20,}}) -->$", page, re.MULTILINE)
    file = HOOK.PICTURES / f"{name}.png"
    assert f"![{caption}](../images/gallery/{name}.png)" in HOOK.filled(page)
    assert 1_000 < file.stat().st_size < BYTES
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", PROMISED)
def test_a_page_shows_results_that_keep_the_promise(name: str) -> None:
    pattern, holds = PROMISED[name]
    results = RESULTS[name]
    assert "one_device" in results
    assert results.keys() <= HOOK.STRATEGIES.keys()
    for strategy, line in results.items():
        (found,) = re.findall(pattern, line)
        numbers = [float(n) for n in ([found] if isinstance(found, str) else found)]
        assert holds(*numbers), f"{strategy}: {line}"


@pytest.mark.parametrize("name", PROMISED)
def test_a_page_shows_the_script_and_its_commands(name: str) -> None:
    shown = HOOK.filled((PAGES / f"{name}.md").read_text("utf-8"))
    assert "<!--" not in shown
    for needed in ("flags.define(", "flags.strategy()", "strategy.scope()"):
        assert needed in shown
    for strategy in HOOK.STRATEGIES:
        assert commands.wrong(HOOK.command(name, strategy)) == ""
        assert HOOK.command(name, strategy) in shown


def test_the_lines_that_a_strategy_needs_are_highlighted() -> None:
    shown = HOOK.code("gan", ["main", "__main__"])
    marked = re.search(r'hl_lines="([\d ]+)"', shown)
    assert marked is not None
    lines = shown.splitlines()[1:]
    assert [lines[int(n) - 1].strip() for n in marked[1].split()] == [
        "strategy = flags.strategy()",
        "with strategy.scope():",
        "flags.define(seed=1)",
    ]


@pytest.mark.parametrize("wanted", ["draw", "GAN.draw"])
def test_code_that_is_not_there_is_an_error(wanted: str) -> None:
    with pytest.raises(ValueError, match=rf"gan\.py has no {wanted}"):
        HOOK.filled(f"<!-- code: gan {wanted} -->")


def test_every_kind_of_picture_is_drawn_and_the_same_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures = module_at("examples/pictures.py")
    digits = np.random.default_rng(0).integers(0, 3, 40)
    images = np.random.default_rng(0).random((5, 8, 8))
    draw = {
        "curves": lambda file: pictures.curves(file, {"a": [2, 1], "b": [2, 1]}, "epoch", "loss"),
        "grid": lambda file: pictures.grid(
            file, {"one": images, "other": images[..., None]}, [digits[:5] == 0, digits[:5] == 1]
        ),
        "confusion": lambda file: pictures.confusion(file, digits, digits[::-1], range(3)),
        "scatter": lambda file: pictures.scatter(file, images, images + 0.1, "true", "found"),
        "text": lambda file: pictures.text(file, {"held out": ("a line\n", range(7))}, width=4),
    }
    for name, drawn in draw.items():
        for file in (first := tmp_path / f"{name}.png", again := tmp_path / f"{name}-again.png"):
            drawn(file)
        assert first.read_bytes().startswith(b"\x89PNG")
        assert first.read_bytes() == again.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2 * len(draw), "a draft was left"
