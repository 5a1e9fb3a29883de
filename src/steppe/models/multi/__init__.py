"""Several networks, or branches of one, as one module."""
