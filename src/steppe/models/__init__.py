"""The networks and their registry."""

from steppe.models.registry import MODELS, build, learn, learns, names

__all__ = ["MODELS", "build", "learn", "learns", "names"]
