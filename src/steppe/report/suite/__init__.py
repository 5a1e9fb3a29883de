"""The page of a suite: a league table of methods over several tasks."""
