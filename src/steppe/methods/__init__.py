"""The methods, by family, and their registry."""

from steppe.methods.registry import METHODS, MethodFacts, card, label, make, names, parse, row, spec_of, summary

__all__ = ["METHODS", "MethodFacts", "card", "label", "make", "names", "parse", "row", "spec_of", "summary"]
