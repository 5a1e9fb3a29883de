"""How the pages of the report are made: one HTML file that loads nothing, everything from runs escaped."""

import base64
import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from steppe.records import Comparison
from steppe.report import formatting, plotting
from steppe.report.comparison.summary import groups
from steppe.report.formatting import count, plain_text
from steppe.report.style import DARK

_HERE = Path(__file__).parent


def render(template: str, comparison: Comparison, script: str, data: Any, **content: Any) -> str:
    """Return a page with the style sheet, one script and its data inline.

    A content security policy, by the script's digest, lets no other script run and nothing load.
    """
    code = (_HERE / "static" / script).read_text(encoding="utf-8")
    loader = FileSystemLoader(_HERE / "templates", encoding="utf-8")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters["plain"] = plain_text
    return environment.get_template(template).render(
        **(_header(comparison) | content),
        css=Markup((_HERE / "static" / "page.css").read_text(encoding="utf-8")),
        dark=DARK,
        script=Markup(code),
        script_hash=Markup(base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()),
        data=embedded(data),
        text=formatting,
    )


def figure(wide: Figure, narrow: Figure) -> Markup:
    """Return the elements of a figure in two widths, of which the page shows the one that fits the screen."""
    # the text of a figure of few panels is not larger than that of the others
    large, width = plotting.inline(wide), round(104 * wide.get_figwidth())
    small = plotting.inline(narrow, salt="narrow")
    return Markup(f'<div class="large" style="max-width: {width}px">{large}</div><div class="small">{small}</div>')


def embedded(content: Any) -> Markup:
    """Return JSON for a script element: no character in it can end the element."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def rounded(value: Any) -> Any:
    """Return the value with all numbers in it to five digits, which is more than a chart shows."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _header(comparison: Comparison) -> dict[str, Any]:
    datasets = ", ".join(dict.fromkeys(plain_text(dataset) for dataset, _ in groups(comparison))) or "no data"
    networks = ", ".join(dict.fromkeys(plain_text(model) for _, model in groups(comparison)))
    epochs = comparison.study.get("epochs")
    parts = [networks, count(len({r.seed for r in comparison.records}), "seed")]
    parts += [count(epochs, "epoch")] if epochs else []
    parts += [_date(comparison.created)]
    return {
        "title": f"{count(len(comparison.methods), 'method')} on {datasets}",
        "eyebrow": " · ".join(plain_text(p) for p in parts if p),
        "resplit": comparison.resplit,
        "data_sets": [formatting.images_summary(name, about) for name, about in comparison.data.items()],
        "colophon": f"Written by steppe {plain_text(comparison.environment.get('steppe', ''))}".strip() + ".",
    }


def _date(created: str) -> str:
    try:
        day = datetime.datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{day.day} {day:%B %Y}"
