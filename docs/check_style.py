"""Fail on identifiers and phrases that docs/style.md lists as not used; part of `make lint`.

python docs/check_style.py [PATH ...]    files or folders; by default the package, the documents and the examples
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STYLE = ROOT / "docs" / "style.md"
DEFAULT = ["src", "docs", "examples", "benchmarks", "README.md", "CONTRIBUTING.md"]
TEXT = (".py", ".md", ".j2", ".js", ".yml", ".yaml")


def listed(heading: str) -> dict[str, str]:
    """Return the left column of a table of the style sheet, each entry with its replacement."""
    section = STYLE.read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")][1:]
    return {entry.strip(" `"): new.strip() for old, new in rows for entry in old.split(",")}


NAMES = listed("Names that are not used")
PHRASES = {
    re.compile(rf"\b{re.escape(phrase)}\b".replace(r"\ ", r"\s+"), re.I): new
    for phrase, new in listed("Phrases that are not used").items()
}


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield each name that a file defines, with its line: variables, arguments, attributes, functions, classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def problems(path: Path) -> Iterator[str]:
    """Yield one line for each use of a listed name or phrase."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for line, name in identifiers(ast.parse(text)):
            if name.strip("_") in NAMES:
                yield f"{path}:{line}: name {name!r}; use {NAMES[name.strip('_')]}"
    for phrase, new in PHRASES.items():
        for match in phrase.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{path}:{line}: phrase {' '.join(match[0].split())!r}; use {new}"


def main(arguments: list[str]) -> int:
    """Check the files; return the exit code."""
    starts = [Path(a) for a in arguments] or [ROOT / name for name in DEFAULT if (ROOT / name).exists()]
    files = [f for s in starts for f in ([s] if s.is_file() else sorted(s.rglob("*"))) if f.suffix in TEXT]
    lines = [line for file in files if file.resolve() != STYLE for line in problems(file)]
    print(*lines, sep="\n", end="\n" if lines else "")
    return min(len(lines), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
