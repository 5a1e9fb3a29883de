"""What a training step of each method costs on this machine, as a multiple of plain training's."""

from steppe.bench.methods import StepCost, methods_cost

__all__ = ["StepCost", "methods_cost"]
