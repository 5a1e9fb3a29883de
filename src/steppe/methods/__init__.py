"""The methods, by family, and their registry."""

from steppe.core.method.registry import (
    MethodFacts,
    card,
    controls_of,
    label,
    make,
    names,
    names_in,
    parse,
    row,
    spec_of,
    summary,
)
from steppe.methods.registry import METHODS

__all__ = [
    "METHODS", "MethodFacts", "card", "controls_of", "label", "make", "names", "names_in", "parse", "row",
    "spec_of", "summary",
]  # fmt: skip
