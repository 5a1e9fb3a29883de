"""Finished runs, examined: each measured within a budget by the functions of `steppe.diagnose`, and side by side.

Numbers from run folders into files; nothing here draws.
"""
