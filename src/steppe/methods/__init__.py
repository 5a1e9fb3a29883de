"""The methods, by family, and their registry."""

from steppe.methods.registry import METHODS, Row, card, label, make, names, parse, row, summary

__all__ = ["METHODS", "Row", "card", "label", "make", "names", "parse", "row", "summary"]
