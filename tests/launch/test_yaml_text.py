"""What we write is what a reader of YAML gets."""

from __future__ import annotations

from typing import Any

import pytest

from tfaccel.launch.yaml_text import dump

yaml = pytest.importorskip("yaml", reason="PyYAML reads what we write: pip install pyyaml")

TEXTS = [
    *("", " ", "a", "a b", "a: b", "a:b", "- a", "#", "a #b", "a#b", "'", '"', "\\", "{x}", "[x]"),
    *("no", "Yes", "on", "y", "null", "~", "true", ".inf", "nan", "0x10", "1e3", "1_000", "0o7"),
    *("12:30:45", "2001-01-01", "01", "1.0", "-1", "+1", "=", "<<", "!tag", "&a", "*a", "%", "@"),
    *(
        "a\nb",
        "a\n",
        "\na",
        " a\nb\n",
        "a\n\nb\n",
        "a\tb\n",
        "a\n\n",
        "a\r\nb\r\n",
        "a \nb\n",
        "\n",
    ),
    *("\0", "\x07", "\x7f", "\x85", "\u2028", "\ufeff", "\ufeffa\nb\n", "ü", "日本", "😀", "$(A)"),
    *("gs://a/b", "H100:8", "a/b:1", "---", "...", "--- a\nb\n", "? a", "| a", "> a", "`", "a,b"),
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts(text: str) -> None:
    for document in (text, [text, text], {text: text}, {"a": [{"b": text, "c": [text]}]}):
        assert yaml.safe_load(dump(document)) == document


@pytest.mark.parametrize(
    "document",
    [
        *(1, 1.5, True, None, [], {}, [[]], [{}], {"a": []}, {"a": {}}, [[1, [2, 3]], [4]]),
        {"a": [{"b": {"c": [1, {"d": None}]}}, {"e": "f\ng\n", "h": 1}], "i": "j\n"},
    ],
)
def test_shapes(document: Any) -> None:
    assert yaml.safe_load(dump(document)) == document


def test_several_documents() -> None:
    assert list(yaml.safe_load_all(dump({"a": 1}, [2], "c"))) == [{"a": 1}, [2], "c"]
