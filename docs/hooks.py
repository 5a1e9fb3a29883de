"""What the site has beside the documents: the examples, the API from its docstrings, and the lists of both."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import steppe
from steppe import methods

ROOT = Path(__file__).parents[1]

# what a user calls, by purpose; `steppe` itself comes first
API = {
    "Integrations": "torch_optimizer transformers lightning accelerate timm",
    "Runs and comparisons": "config.run training.run experiments.comparison tracking",
    "Records and statistics": "records.comparison report.statistics",
    "Data": "data data.dataset data.loader",
    "Networks": "models.registry models.multi.shared_trunk training.export",
    "Search": "experiments.tuning.search experiments.tuning.space",
    "Diagnostics": "loss_surface sharpness hessian landscape_directions landscape corruptions calibration "
    "filter_norms pac_bayes noise_tolerance",
    "For method files": "core.numerics.vector core.numerics.perturbations core.numerics.losses core.schedules",
    "Conformance": "testing",
}
PREFIX = {"Integrations": "steppe.integrations.", "Diagnostics": "steppe.diagnostics."}


def examples() -> dict[str, str]:
    """Return a page for each example, by its place."""
    found = sorted((ROOT / "examples").glob("*.py"))
    return {f"examples/{path.stem}.md": f"# {path.name}\n\n```python\n{path.read_text()}```\n" for path in found}


def reference() -> dict[str, str]:
    """Return the pages of the API, by their places."""
    ours = [name for name in steppe.__all__ if isinstance(getattr(steppe, name), type)]
    listed = [n for n in ours if getattr(steppe, n).__module__.startswith("steppe.methods.")]
    rest = [n for n in steppe.__all__ if n not in listed]
    made = {"steppe": [f"steppe.{n}" for n in rest], "Methods": [f"steppe.{n}" for n in listed]}
    made |= {title: [PREFIX.get(title, "steppe.") + n for n in names.split()] for title, names in API.items()}
    # what a method's class defines is described once, by Method
    short = {"Methods": "\n    options: {members: false}"}
    return {
        f"reference/{title.lower().replace(' ', '-')}.md": "\n\n".join(
            [f"# {title}", *(f"::: {name}{short.get(title, '')}" for name in names)]
        )
        for title, names in made.items()
    }


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the folders of the navigation with their pages."""
    inside = {
        "methods/": ["methods/README.md", *(f"methods/{name}.md" for name in methods.names())],
        "examples/": list(examples()),
        "reference/": list(reference()),
        "decisions/": [f"decisions/{p.name}" for p in sorted((ROOT / "docs/decisions").glob("*.md"))],
    }
    entries = [pair for entry in config.nav or [] for pair in entry.items()]
    config.nav = [{title: inside.get(what, what) if isinstance(what, str) else what} for title, what in entries]
    guides = next(entry["Guides"] for entry in config.nav if "Guides" in entry)
    listed = {place for guide in guides for place in guide.values()}
    found = [f"how-to/{p.name}" for p in sorted((ROOT / "docs/how-to").glob("*.md"))]
    guides += [place for place in found if place not in listed]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    for place, content in (examples() | reference()).items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links to examples to their pages; links to other files of the repository become their text."""
    folder = posixpath.dirname(page.file.src_uri)

    def lead(found: re.Match[str]) -> str:
        text, target = found.groups()
        place = posixpath.normpath(posixpath.join("docs", folder, target))
        if place.startswith("examples/"):
            return f"[{text}]({posixpath.relpath(place.removesuffix('.py') + '.md', folder or '.')})"
        return found[0] if place.startswith("docs/") else text

    return re.sub(r"\[([^\]]+)\]\((?!http|#)([^)#\s]+)\)", lead, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Show the formulas of docstrings as they are written; setting them would take a script from elsewhere."""
    return html.replace(":math:<code>", "<code>")
