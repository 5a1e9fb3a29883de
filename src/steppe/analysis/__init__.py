"""Finished runs, measured within a budget by the functions of `steppe.diagnostics`, and compared.

Numbers from run folders into files; nothing here draws.
"""
