"""Faults on purpose: six classes of them, each with a defect planted that it must catch.

    python -m faults --short        # three minutes; without --short all of it
    python -m faults damage fuzz    # some classes only

with ``src`` and ``tests`` on PYTHONPATH (``make faults``, ``make faults-short``). What was measured is kept in
``docs/reliability.json``, from which ``docs/reliability.md`` is made.
"""
