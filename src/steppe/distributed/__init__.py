"""Process groups, collectives and worker processes."""
