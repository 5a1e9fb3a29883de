"""Faults on purpose: seven classes of them, each with a defect planted that it must catch.

    python -m faults --short        # four minutes; without --short all of it
    python -m faults damage fuzz    # some classes only

with ``src`` and ``tests`` on PYTHONPATH (``make faults``, ``make faults-short``). What was measured is kept in
``docs/reliability.json``, from which ``docs/reliability.md`` is made.

A module of ``faults.classes`` has a TITLE; a number of cases in full (FULL), in short (SHORT) and with a defect
(FEW); what each of its defects breaks, by name (PLANTED); and ``cases(count, where)``, which tries about so many.
"""
