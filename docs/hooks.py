"""MkDocs hooks: pages for the examples, API pages from the docstrings, and their entries in the navigation."""

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

# public modules by purpose; the page of `steppe` itself comes first
API = {
    "Integrations": "torch_optimizer transformers lightning accelerate timm",
    "From Python": "api.comparison api.tuning api.diagnosis",
    "Runs and comparisons": "config.run config.data config.optim training.run experiments.comparison tracking",
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
    """Return a page for each example, by its path in the site."""
    files = sorted((ROOT / "examples").glob("*.py"))
    return {f"examples/{path.stem}.md": f"# {path.name}\n\n```python\n{path.read_text()}```\n" for path in files}


def reference() -> dict[str, str]:
    """Return the API pages, by their paths in the site."""
    public = [n for n in steppe.__all__ if getattr(getattr(steppe, n), "__name__", n) == n]  # without aliases
    classes = [n for n in public if isinstance(getattr(steppe, n), type)]
    of_methods = [n for n in classes if getattr(steppe, n).__module__.startswith("steppe.methods.")]
    rest = [n for n in public if n not in of_methods]
    pages = {"steppe": [f"steppe.{n}" for n in rest], "Methods": [f"steppe.{n}" for n in of_methods]}
    pages |= {title: [PREFIX.get(title, "steppe.") + n for n in names.split()] for title, names in API.items()}
    # the members of a method's class are documented once, in Method
    options = {"Methods": "\n    options: {members: false}"}
    return {
        f"reference/{title.lower().replace(' ', '-')}.md": "\n\n".join(
            [f"# {title}", *(f"::: {name}{options.get(title, '')}" for name in names)]
        )
        for title, names in pages.items()
    }


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace the folders named in the navigation by their pages."""
    folders = {
        "methods/": ["methods/README.md", *(f"methods/{name}.md" for name in methods.names())],
        "examples/": list(examples()),
        "reference/": list(reference()),
        "decisions/": [f"decisions/{p.name}" for p in sorted((ROOT / "docs/decisions").glob("*.md"))],
    }
    entries = [pair for entry in config.nav or [] for pair in entry.items()]
    config.nav = [{title: folders.get(item, item) if isinstance(item, str) else item} for title, item in entries]
    guides = next(entry["Guides"] for entry in config.nav if "Guides" in entry)
    titled = {path for guide in guides for path in guide.values()}
    paths = [f"how-to/{p.name}" for p in sorted((ROOT / "docs/how-to").glob("*.md"))]
    guides += [path for path in paths if path not in titled]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for path, content in (examples() | reference()).items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links to examples to their pages; reduce links to files outside the site to their text."""
    folder = posixpath.dirname(page.file.src_uri)

    def rewrite(link: re.Match[str]) -> str:
        text, target = link.groups()
        path = posixpath.normpath(posixpath.join("docs", folder, target))
        if path.startswith("examples/"):
            return f"[{text}]({posixpath.relpath(path.removesuffix('.py') + '.md', folder or '.')})"
        return link[0] if path.startswith("docs/") else text

    return re.sub(r"\[([^\]]+)\]\((?!http|#)([^)#\s]+)\)", rewrite, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Show formulas of docstrings as text: typesetting them would load a script from another server."""
    return html.replace(":math:<code>", "<code>")
