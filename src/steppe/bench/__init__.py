"""What things cost, measured on this machine: a method's step, a store of past outputs."""

from steppe.bench.methods import Cost, methods_cost
from steppe.bench.store import StoreCost, store_cost

__all__ = ["Cost", "StoreCost", "methods_cost", "store_cost"]
