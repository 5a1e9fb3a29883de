"""The networks and their registry."""

from steppe.models.cifar10_fast import learn, learns
from steppe.models.registry import MODELS, build, names

__all__ = ["MODELS", "build", "learn", "learns", "names"]
