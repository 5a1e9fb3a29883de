"""A recipe as text: settings with their sources, published numbers, differences."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steppe.config.recipes.recipe import Case, Recipe

_WIDTH = 115


def card(recipe: Recipe) -> str:
    """Return the whole recipe as text for a terminal."""
    parts = [
        f"{recipe.name}: {recipe.title}",
        _columns([("Source", recipe.source), ("Data", _list(recipe.data)), ("Models", _list(recipe.models))]),
        "Rows\n" + _columns([(row, spec, recipe.sources[row]) for row, spec in recipe.methods.items()]),
        "Settings\n" + _columns([(k, _text(v), recipe.sources[k]) for k, v in recipe.settings.items()]),
    ]
    cases = [_case(case) for case in recipe.where if _concerns(case, recipe)]
    parts += ["Exceptions\n" + "\n".join(cases)] if cases else []
    table = [recipe.published.columns, *recipe.published.rows] if recipe.published.rows else []
    published = [f"Published: {recipe.published.quantity}", *([_columns(table)] if table else [])]
    parts += ["\n".join(published), "Differs\n" + "\n".join(_item(d) for d in recipe.differs)]
    return "\n\n".join(parts)


def listing(titles: Mapping[str, str]) -> str:
    """Return names and titles, one recipe a line."""
    width = max(map(len, titles))
    return "\n".join(f"{name:<{width}}  {title}" for name, title in titles.items())


def _concerns(case: Case, recipe: Recipe) -> bool:
    names = {name for row, spec in recipe.methods.items() for name in (row, spec.partition(":")[0])}
    matches = not case.rows or bool(names & {*case.rows})
    return matches and bool(case.settings or {*recipe.methods} & {*case.methods})


def _case(case: Case) -> str:
    concerned = "; ".join(_list(names) for names in (case.data, case.models, case.rows) if names)
    changed = [f"{k} {_text(v)}" for k, v in (*case.settings.items(), *case.methods.items())]
    return _item(f"{concerned or 'all'}: {', '.join(changed)} ({case.source})")


def _item(text: str) -> str:
    wrap = textwrap.TextWrapper(_WIDTH, "  - ", "    ", break_long_words=False, break_on_hyphens=False)
    return wrap.fill(text)


def _list(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _columns(rows: Sequence[Sequence[Any]]) -> str:
    """Return rows in columns as wide as their widest cell."""
    cells = [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(f"  {line}".rstrip() for line in lines)
