"""The command line: each verb reads its configuration, calls one function and says what came of it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shlex
import signal
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import docstring_parser
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser, DefaultHelpFormatter, Namespace

from steppe.config import Data, Optim, Run, Study
from steppe.errors import InputError, RunError, unknown

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = {
    "compare": """examples:
  steppe compare                                           the methods of the SADT paper on digits, 3 seeds
  steppe compare --methods plain sam sam:rho=0.1 sadt-v1   choose methods, with settings
  steppe compare --datasets folder:photos --data.size 64 --models torchvision/resnet18
  steppe compare --match gradients                         equal numbers of gradient evaluations
  steppe compare --config study.yaml --seeds 0 1 2 3 4     a file, with one change

A comparison that was stopped goes on when the same command is given again; finished runs are kept.""",
    "train": """examples:
  steppe train --method sadt-v1 --dataset cifar10:PATH --epochs 30 --batch 256
  steppe train --method sam:rho=0.1+gc --seed 3

A run that was stopped goes on when the same command is given again.""",
    "report": """example:
  steppe report out                                        write the tables and the page anew""",
    "list": """examples:
  steppe list                                              methods, each in a sentence
  steppe list models""",
    "show": """example:
  steppe show sadt-v1                                      equation, paper, cost, differences, values to try""",
}


class _Usage(Exception):  # noqa: N818 - carries the parser's words to where they are put into ours
    pass


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _Usage(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 (a run failed) or 2 (bad input)."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(argv)
    except (InputError, RunError) as error:
        if debug:
            raise
        print(f"steppe: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"steppe: stopped; go on with: {shlex.join(['steppe', *argv])}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


def _run(argv: list[str]) -> int:
    parser = _Parser(
        prog="steppe",
        description="Train networks into flat minima, and compare the methods that promise it.",
        epilog="steppe COMMAND --help teaches each command by example. --debug shows tracebacks.",
        formatter_class=_Formatter,  # handed down to the commands by add_subcommand
    )
    commands = parser.add_subcommands(required=True, metavar="COMMAND")
    subs = {}
    for name, (build, _, help_text) in COMMANDS.items():
        subs[name] = _Parser(description=help_text, epilog=EXAMPLES[name])
        build(subs[name])
        commands.add_subcommand(name, subs[name], help=help_text)
    if not argv:
        parser.print_help()
        return 0
    if not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise unknown("command", argv[0], COMMANDS)
    try:
        given = parser.parse_args(argv)
    except _Usage as usage:
        raise _in_our_words(str(usage), subs.get(argv[0], parser)) from None
    return COMMANDS[given.subcommand][1](given[given.subcommand], shlex.join(["steppe", *argv]))


def _in_our_words(message: str, parser: ArgumentParser) -> InputError:
    """Turn the parser's complaint into one line with the field, the value and the remedy."""
    flags = {o.removeprefix("--"): a for a in parser._actions for o in a.option_strings if o.startswith("--")}
    stranger = re.search(r"unrecognized arguments: (?:--(\S+)|(\S+))", message) or re.search(
        r"does not accept (?:option|nested key) '([^']+)'()", message
    )
    if stranger:
        if stranger[1]:
            inner = [f for f in flags if f.endswith("." + stranger[1])]
            if inner:
                return InputError(f"unknown setting {stranger[1]!r}; did you mean {inner[0]!r}?")
            return unknown("setting", stranger[1].split("=")[0], flags, "(--help lists all)")
        return InputError(f"unexpected {stranger[2]!r}; settings are written --name value, --help lists all")
    wrong = re.search(r'Parser key "([^"]+)"[^:]*:(.*)', message, re.DOTALL)
    value = re.search(r"(?:Got|Given) value: (.*)", message)
    if wrong and value:
        wanted = next((text for kind, text in _WANTED.items() if f"<class '{kind}'>" in message), "")
        choices = re.search(r"Literal\[([^\]]+)\]", message)
        if choices:
            wanted = "choose one of " + choices[1].replace("'", "")
        return InputError(f"{wrong[1]} is {value[1].strip()!r}; {wanted or 'give a value of its type'}")
    if "is not iterable" in message:
        return InputError("a list in the file is a single value; write for example methods: [plain, sam]")
    return InputError(" ".join((wrong[2] if wrong else message).split()))


_WANTED = {"int": "give a whole number", "float": "give a number"}


class _Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the examples as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


# -- verbs ---------------------------------------------------------------------------------------------------


def _compare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the settings below")
    parser.add_argument("--out", type=str, default="out", help="folder of the comparison")
    parser.add_argument("--jobs", type=int, default=0, help="runs at a time; 0: as many as the cores carry")
    parser.add_argument("--retry", action=ActionYesNo, default=False, help="run failed runs again")
    _add_fields(parser, Study)


def _compare(given: Namespace, command: str) -> int:
    from steppe import compare, machine
    from steppe.compare.live import Display

    study = _make(Study, given)
    if given.jobs < 0:
        raise InputError(f"jobs is {given.jobs}; give 0 (as many as fit) or more")
    console = _console()
    grid = compare.prepare(study, Path(given.out), command, retry=given.retry)
    todo = grid.open
    on_gpu = machine.device().type == "cuda"
    jobs = given.jobs or (1 if on_gpu else max(1, machine.cores() // study.threads))
    kept = len(grid.jobs) - len(todo)
    kept_text = f", {kept} already finished" if kept else ""
    console.print(f"{len(todo)} runs, {min(jobs, max(len(todo), 1))} at a time{kept_text}", highlight=False)
    with Display(len(todo), console) as display:
        errors = compare.run(grid, jobs, display.listen)
    _print_report(grid.out, console)
    for job, message in errors.items():
        print(f"steppe: {job.name}: {message}", file=sys.stderr)
    return 1 if errors else 0


def _train_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the settings below")
    parser.add_argument("--out", type=str, default="out", help="folder under which the run's own folder is made")
    _add_fields(parser, Run)


def _train(given: Namespace, command: str) -> int:
    from steppe import engine, machine
    from steppe.compare.live import Display

    run = _make(Run, given)
    machine.keep_freed_memory()
    images = engine.load_data(run)
    engine.check(run, images)
    folder = Path(given.out) / "runs" / engine.digest(run)

    @dataclasses.dataclass(frozen=True)
    class One:
        name: str = f"{run.method} seed {run.seed}"

    with Display(1, _console()) as display:
        result = engine.fit(run, folder, images, lambda news: display.listen(One(), news))
        display.listen(One(), result)
    print(f"records: {folder}")
    return 0 if result["status"] == "ok" else 1


def _report_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=str, help="folder of a comparison")


def _report(given: Namespace, command: str) -> int:
    _print_report(Path(given.folder), _console())
    return 0


def _console() -> Console:
    """Return where to print: as wide as the terminal, wide enough for the whole table in a log."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    return Console(width=wide)


def _print_report(folder: Path, console: Console) -> None:
    """Write a comparison's report and show its table and its reading."""
    from steppe import records
    from steppe.report import page, reading, rows, tables

    written = page.write(folder)
    table = rows.rows(records.load(folder))
    console.print(tables.terminal(table))
    for text in (reading.sentence(table), *reading.remarks(table)):
        console.print(f"\n{text}", highlight=False, markup=False)
    console.print(f"\nreport: {written}", highlight=False, markup=False, soft_wrap=True)


def _list_arguments(parser: ArgumentParser) -> None:
    kinds = Literal["methods", "models", "datasets"]
    parser.add_argument("kind", type=kinds, nargs="?", default="methods", help="methods, models or datasets")


def _list(given: Namespace, command: str) -> int:
    from steppe import data, methods, models

    if given.kind == "methods":
        width = max(map(len, methods.names()))
        for name in methods.names():
            print(f"{name:<{width}}  {methods.summary(name)}")
    else:
        print("\n".join((models if given.kind == "models" else data).names()))
    return 0


def _show_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("method", type=str, help="a method's name; `steppe list` has them")


def _show(given: Namespace, command: str) -> int:
    from steppe import methods

    print(methods.card(given.method))
    print(f"\nSettings {methods.make(given.method)}")
    return 0


Verb = tuple[Callable[[ArgumentParser], None], Callable[[Namespace, str], int], str]

COMMANDS: dict[str, Verb] = {
    "compare": (_compare_arguments, _compare, "Train methods side by side, fairly, and report."),
    "train": (_train_arguments, _train, "Train one run."),
    "report": (_report_arguments, _report, "Write the report of a comparison anew."),
    "list": (_list_arguments, _list, "List methods, models or data sets."),
    "show": (_show_arguments, _show, "Show a method's card."),
}


# -- from dataclasses to flags -------------------------------------------------------------------------------


def _add_fields(parser: ArgumentParser, cls: type, prefix: str = "") -> None:
    """Add a flag per field of a configuration dataclass, nested ones with a dot."""
    hints, described = typing.get_type_hints(cls), _described(cls)
    defaults = cls()
    for f in dataclasses.fields(cls):
        hint, default = hints[f.name], getattr(defaults, f.name)
        if dataclasses.is_dataclass(hint):
            _add_fields(parser, typing.cast(type, hint), f"{prefix}{f.name}.")
            continue
        options: dict[str, Any] = {"default": default, "help": described.get(f.name, "")}
        if typing.get_origin(hint) is tuple:
            options |= {"type": typing.get_args(hint)[0], "nargs": "*", "default": list(default)}
        elif hint is bool:
            options |= {"action": ActionYesNo}
        else:
            options["type"] = hint
        parser.add_argument(f"--{prefix}{f.name}", **options)


def _described(cls: type) -> dict[str, str]:
    """Return each field's description from the docstrings of the class and its bases."""
    described: dict[str, str] = {}
    for c in cls.__mro__:
        for p in docstring_parser.parse(c.__doc__ or "").params:
            described.setdefault(p.arg_name, " ".join((p.description or "").split()))
    return described


def _make(cls: Callable[..., Any], given: Namespace) -> Any:
    """Make the configuration that the flags and the file describe."""
    values: dict[str, Any] = {}
    for f in dataclasses.fields(typing.cast(Any, cls)):
        value = given[f.name]
        if f.name in ("data", "optim"):
            value = _make(Data if f.name == "data" else Optim, value)
        values[f.name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)
