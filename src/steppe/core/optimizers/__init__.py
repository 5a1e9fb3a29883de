"""Optimizers: several joined to one, the weights that they evaluate, the groups of their parameters."""
