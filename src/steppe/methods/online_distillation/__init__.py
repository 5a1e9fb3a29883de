"""Several networks that learn from each other."""
