"""Arithmetic on lists of tensors: vectors, perturbations, losses."""
