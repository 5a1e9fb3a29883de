"""Learning from one's own outputs."""
