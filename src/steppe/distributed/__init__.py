"""Processes: groups, collectives, workers."""
