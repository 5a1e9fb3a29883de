"""State that methods keep between steps."""
