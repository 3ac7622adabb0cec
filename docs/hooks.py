"""What MkDocs puts into pages while it builds the site: tables that are read from the sources.

A page requests one with a comment on a line of its own:

    <!-- table: modules tfaccel/cluster -->    the modules of a package, and what each is for
    <!-- table: messages -->                   every error message, by the class of the error
    <!-- table: private names -->              the private names of TensorFlow and Keras in use
    <!-- file: CHANGELOG.md -->                a file of the repository's root

Nothing here imports the package, so that the site is built without TensorFlow.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("strategies", "tfaccel")
PRIVATE = ROOT / "tfaccel" / "distribute" / "_private"
_MARKER = re.compile(r"^<!-- (table|file): (.+?) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with the text of each page."""
    return filled(markdown)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with the HTML of each page.

    Raises:
        ValueError: for a block of code whose info string MkDocs did not take.
    """
    if "<p>```" in html:
        raise ValueError(f"{page.file.src_uri} has a block of code that is shown as text")
    return html


def filled(markdown: str) -> str:
    """The text of a page with its tables.

    Raises:
        ValueError: for a comment that requests something else.
    """
    return _MARKER.sub(lambda found: _made(found[1], found[2]), markdown)


def _made(kind: str, what: str) -> str:
    if kind == "file":
        return _file(ROOT / what)
    name, _, argument = what.partition(" ")
    if name == "modules":
        return _table(("module", "what it is for"), modules(ROOT / argument))
    if what == "messages":
        return _messages()
    if what == "private names":
        return _private_names()
    raise ValueError(f"<!-- {kind}: {what} --> requests a table that docs/hooks.py does not know")


def _file(path: Path) -> str:
    # A file of the root links to pages as docs/page.md, a page as page.md.
    text = path.read_text("utf-8").replace("](docs/", "](")
    return re.sub(r"\]\(CONTRIBUTING\.md\)", "](contributing.md)", text)


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    lines += [f"| `{name}` | {_cell(text)} |" for name, text in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def modules(folder: Path) -> list[tuple[str, str]]:
    """The modules of a package, each with the first sentence of its docstring."""
    rows = []
    for path in sorted(folder.glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        if text:
            rows.append((path.relative_to(ROOT).as_posix(), _first_sentence(text)))
    return rows


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z`)][.!?]) (?=[A-Z`])", paragraph)[0]


# --- Error messages ---------------------------------------------------------------------------


def messages() -> dict[str, list[tuple[str, str]]]:
    """Every message of an error of `tfaccel/errors.py`, and every warning.

    Returns:
        By class, or ``"warnings"``, pairs of the text and its file. What a message is told at run
        time stands as an ellipsis.
    """
    classes = {
        node.name
        for node in ast.parse((ROOT / "tfaccel" / "errors.py").read_text("utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    found: dict[str, list[tuple[str, str]]] = {}
    for path in _sources():
        tree = ast.parse(path.read_text("utf-8"))
        texts = _Texts(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node.args:
                name = ast.unparse(node.func)
                kind = "warnings" if name == "logging.warning" else name
                if kind in classes or kind == "warnings":
                    where = path.relative_to(ROOT).as_posix()
                    found.setdefault(kind, []).extend((t, where) for t in texts.of(node.args[0]))
    return {name: sorted(set(rows)) for name, rows in sorted(found.items())}


class _Texts:
    """The texts that expressions of a module can be, as far as they are written in it."""

    def __init__(self, tree: ast.Module) -> None:
        self._functions = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        self._constants = {
            getattr(node.targets[0], "id", ""): node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        }

    def of(self, node: ast.expr) -> list[str]:
        """Literals, formatted strings, and what a function of the module returns."""
        called = self._functions.get(ast.unparse(node.func)) if isinstance(node, ast.Call) else None
        if called is not None:
            returned = [n.value for n in ast.walk(called) if isinstance(n, ast.Return) and n.value]
            return [text for value in returned for text in self.of(value)]
        text = self._formatted(node)
        return [text] if re.search(r"[a-z]{3}", text) else []

    def _formatted(self, node: ast.expr) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return re.sub(r"%[srd]", "…", node.value)
        if isinstance(node, ast.FormattedValue):
            return self._constants.get(ast.unparse(node.value), "…")
        if isinstance(node, ast.JoinedStr):
            return "".join(self._formatted(part) for part in node.values)
        return ""


def _sources() -> Iterator[Path]:
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.relative_to(ROOT).as_posix().startswith("tfaccel/strategies/"):
                yield path


def _messages() -> str:
    shown = []
    for name, rows in messages().items():
        title = "Warnings" if name == "warnings" else f"`{name}`"
        shown.append(f"### {title}\n\n| message | from |\n| --- | --- |")
        shown[-1] += "".join(
            f"\n| {_cell(text.removeprefix('tfaccel: '))} | `{where}` |" for text, where in rows
        )
    return "\n\n".join(shown)


# --- Private names ----------------------------------------------------------------------------


def private_names() -> dict[str, list[tuple[str, str]]]:
    """What each module of `_private` exports.

    Returns:
        By module, pairs of a name and its reason: a docstring, or the comment above an import.
    """
    found = {}
    for path in sorted(PRIVATE.glob("*.py")):
        if path.name != "__init__.py":
            found[path.name] = _exported(path.read_text("utf-8"))
    return found


def _private_names() -> str:
    shown = []
    for name, rows in private_names().items():
        text = ast.get_docstring(ast.parse((PRIVATE / name).read_text("utf-8"))) or ""
        table = _table(("name", "why it is needed"), rows)
        shown.append(f"### `{name}`\n\n{_cell(_first_sentence(text))}\n\n{table}")
    return "\n\n".join(shown)


def _exported(source: str) -> list[tuple[str, str]]:
    tree, lines = ast.parse(source), source.splitlines()
    reasons: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            reasons[node.name] = _reason(ast.get_docstring(node) or "")
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                reasons[alias.asname or alias.name] = _comment_above(lines, node.lineno - 1)
    exported = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    )
    return [(name, reasons[name]) for name in exported]


def _reason(docstring: str) -> str:
    """The paragraphs that come before the arguments."""
    kept = []
    for paragraph in docstring.split("\n\n"):
        if re.match(r"(Args|Returns|Raises|Attributes|Yields):", paragraph):
            break
        kept.append(" ".join(paragraph.split()))
    return " ".join(kept)


def _comment_above(lines: list[str], line: int) -> str:
    """The comment of the block of imports that `line` stands in."""
    while line > 0 and not lines[line - 1].startswith("#"):
        line -= 1
    comment: list[str] = []
    while line > 0 and lines[line - 1].startswith("#"):
        comment.insert(0, lines[line - 1].removeprefix("#").strip())
        line -= 1
    return " ".join(comment)
