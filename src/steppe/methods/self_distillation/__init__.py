"""Distillation from the network's own outputs."""
