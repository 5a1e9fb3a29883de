"""Measurements of finished runs within a time budget, and comparisons of runs.

They read run folders and write files; figures are drawn by `steppe.report`.
"""
