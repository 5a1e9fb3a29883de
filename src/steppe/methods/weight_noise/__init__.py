"""Random perturbation of the weights."""
