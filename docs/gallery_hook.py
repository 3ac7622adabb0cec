"""What MkDocs puts into the pages of the gallery: code, commands and results of the examples.

    <!-- code: gan GAN.train_step -->    functions, classes or methods of `examples/gan.py`
    <!-- example: gan -->                what makes it distributed, its commands, and its results
    <!-- picture: gan Drawn digits. -->  its picture and a caption
    <!-- picture: gan -->                a small picture that leads to its page

Code is read from the scripts; results and pictures are what `docs/run_gallery.py` has made, and are
left out where it has made none.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
RESULTS = ROOT / "docs" / "gallery" / "results.json"
PICTURES = ROOT / "docs" / "images" / "gallery"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "pictures")

# As the commands of the pages show them, and as `run_gallery.py` runs them.
STRATEGIES = {
    "one_device": "--strategy=one_device --device_type=cpu",
    "mirrored": "--strategy=mirrored --device_type=cpu --devices=2",
    "model_parallel": "--strategy=model_parallel --mesh=batch=2,model=2 --device_type=cpu",
    "multi_worker_mirrored": "--strategy=multi_worker_mirrored",
}
SETTINGS = {
    "one_device": "`one_device`",
    "mirrored": "`mirrored`, two logical CPU devices",
    "model_parallel": "`model_parallel`, a mesh of 2 x 2 logical CPU devices",
    "multi_worker_mirrored": "`multi_worker_mirrored`, two worker processes",
}
# The lines that a strategy needs; in a custom training loop a few more.
_DISTRIBUTED = re.compile(
    r"flags\.(define|strategy)\(|strategy\.(scope|run|reduce|experimental_distribute_dataset)\("
)
_MARKER = re.compile(r"<!-- (code|example|picture): (\w+) ?(.*?) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with the text of each page."""
    return filled(markdown)


def filled(markdown: str) -> str:
    """The text of a page with its code, commands and results.

    Raises:
        ValueError: for a comment that requests what no script has.
    """
    makers = {
        "code": lambda name, rest: code(name, rest.split()),
        "example": lambda name, _: example(name),
        "picture": picture,
    }
    return _MARKER.sub(lambda found: makers[found[1]](found[2], found[3]), markdown)


def picture(name: str, caption: str) -> str:
    """The picture of an example; an empty text when there is none."""
    if not (PICTURES / f"{name}.png").exists():
        return ""
    if caption:
        return f"![{caption}](../images/gallery/{name}.png)\n\n*{caption}*"
    return f'[![{name}](images/gallery/{name}.png){{ width="160" }}](gallery/{name}.md)'


def code(name: str, objects: list[str]) -> str:
    """A block with the source of some objects; the lines that a strategy needs are highlighted.

    Args:
        name: of a script, such as ``"gan"``.
        objects: such as ``"main"``, ``"GAN.train_step"``, or ``"__main__"`` for what runs.

    Raises:
        ValueError: the script has no such object.
    """
    text = (EXAMPLES / f"{name}.py").read_text("utf-8")
    source = "\n\n".join(_source(name, text, one) for one in objects)
    places = [n for n, line in enumerate(source.splitlines(), 1) if _DISTRIBUTED.search(line)]
    marks = f' hl_lines="{" ".join(map(str, places))}"' if places else ""
    return f'```python title="examples/{name}.py"{marks}\n{source}\n```'


def _source(name: str, text: str, wanted: str) -> str:
    nodes: list[ast.stmt] = ast.parse(text).body
    for part in wanted.split("."):
        found = next((node for node in nodes if _name(node) == part), None)
        if found is None:
            raise ValueError(f"examples/{name}.py has no {wanted}, which a page of docs/ shows")
        nodes = getattr(found, "body", [])
    lines = text.splitlines()[found.lineno - 1 : found.end_lineno]
    return textwrap.dedent("\n".join(lines))


def _name(node: ast.stmt) -> str:
    if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test):
        return "__main__"
    return str(getattr(node, "name", ""))


def command(name: str, strategy: str) -> str:
    """What starts an example under a strategy."""
    start = "tfaccel launch --nproc 2" if strategy == "multi_worker_mirrored" else "python"
    return f"{start} examples/{name}.py {STRATEGIES[strategy]}"


def example(name: str) -> str:
    """The sections that every page has."""
    commands = "\n".join(command(name, strategy) for strategy in STRATEGIES)
    results = json.loads(RESULTS.read_text("utf-8")).get(name, {})
    return f"""\
## What makes it distributed

The highlighted lines: the flags, the strategy, and its scope around what creates variables. The
rest is what the script would be for one device.

{code(name, ["main", "__main__"])}

## Run it

```sh
python examples/{name}.py   # picks a strategy for this machine
{commands}
```
{_table(name, results) if results else ""}"""


def _table(name: str, results: dict[str, str]) -> str:
    rows = "\n".join(f"| {SETTINGS[s]} | {results[s]} |" for s in STRATEGIES if s in results)
    return f"""
## What it states

| under | the last line that it printed |
| --- | --- |
{rows}

These are lines of real runs, with the seed of the script, on a CPU; `python docs/run_gallery.py
{name}` recreates them."""
