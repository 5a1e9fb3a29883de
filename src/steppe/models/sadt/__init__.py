"""Networks of the SADT paper."""
