"""Suites: several tasks on which methods are tuned alike and then compared, at equal compute and at equal epochs.

One YAML file per suite:

    title           what the suite shows
    about           one sentence on what it is for
    seeds           tune: seeds of the tuning; final: seeds of the comparison, none of them a tuning seed
    like            a built-in suite: it has what is not given here, and tasks and rows that are only named here
    resplit         true: each seed has a split of its own, data.split_seed + seed
    best_of_plain   with so many of plain training's best factors each setting without factors is tried
    settings        fields of `steppe.config.Run` that all tasks share, nested ones with a dot
    tasks           name: about (a sentence), files (a kind of data set whose path the user gives), without (rows
                    that do not apply), start (fields of another training, whose weights the task starts with), and
                    fields of `steppe.config.Run`
    rows            name: settings, the list that is tuned; all rows have equally many. ``control: true`` marks a
                    row that is ranked with no method. ``about`` is one sentence, if the method's own is not right

A setting is a method (``sam:rho=0.1``), or a mapping of ``method`` (the row's name if not given) and of factors on
the task's ``lr``, ``weight_decay`` and ``epochs``. ``seeds_from`` adds a number to all seeds: a row that shares no
random number with the others. Reading needs no torch.
"""

from steppe.config.suites._suite import Setting, Suite, SuiteRow, SuiteTask, card, is_suite, load, names

__all__ = ["Setting", "Suite", "SuiteRow", "SuiteTask", "card", "is_suite", "load", "names"]
