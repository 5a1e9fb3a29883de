"""The comparison that ``steppe compare`` makes without settings."""

from importlib import resources

import yaml

from steppe.config.fields import from_dict
from steppe.config.run import Study


def demo_text() -> str:
    """Return the settings file of the demo."""
    return resources.files("steppe.config").joinpath("demo.yaml").read_text("utf-8")


def demo() -> Study:
    """Return the demo: a few hundred handwritten digits, trained to the end."""
    study: Study = from_dict(Study, yaml.safe_load(demo_text()))
    return study
