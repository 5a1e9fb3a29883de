"""Public programs written again without the package, for levels of accuracy to compare its recipes with."""
