"""Several networks as one module."""
