"""The command line: from arguments to a verb, and from its errors to one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import errno
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from steppe import __version__
from steppe.cli import console
from steppe.cli.asking import as_flags
from steppe.cli.help_text import EXAMPLES
from steppe.cli.verbs import COMMANDS, TEAMWORK
from steppe.errors import InputError, RunError, unknown


class _Usage(Exception):  # noqa: N818 - carries the parser's words to where they are put into ours
    pass


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _Usage(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 (a run failed) or 2 (bad input)."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    argv = as_flags([a for a in argv if a != "--debug"])
    signal.signal(signal.SIGTERM, _interrupt)
    with contextlib.ExitStack() as stack:
        try:
            if console.in_torchrun() and argv and argv[0] in TEAMWORK:
                from steppe.distributed import process_group

                stack.enter_context(process_group.process_group())
            return _run(argv)
        except (InputError, RunError) as error:
            if debug:
                raise
            console.complain(f"error: {' '.join(str(error).split())}")
            return 2
        except KeyboardInterrupt:
            console.complain(f"stopped; go on with: {shlex.join(['steppe', *argv])}")
            return 130
        except BrokenPipeError:
            return 1
        except (MemoryError, RuntimeError, OSError) as error:
            lacking = _lacking(error)
            if debug or lacking is None:
                raise
            what, remedy = lacking
            said = next(iter(str(error).splitlines()), "")[:200]
            more = f" ({said})" if said else ""
            console.complain(f"error: {what}{more}; {remedy}")
            return 2


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
    if argv[0] == "--version":
        print(f"steppe {__version__}")
        return 0
    if not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise unknown("command", argv[0], COMMANDS)
    try:
        given = parser.parse_args(argv)
    except _Usage as usage:
        raise _in_our_words(str(usage), subs.get(argv[0], parser)) from None
    except InputError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        # the parser fails in its own ways on values of shapes that it does not foresee
        said = next(iter(str(error).splitlines()), "")[:200]
        raise InputError(f"the settings cannot be understood ({said}); --help lists them") from error
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


# what torch, oneDNN, CUDA and the interpreter say
_MEMORY = ("can't allocate memory", "out of memory", "could not create a primitive", "can't start new thread")


def _lacking(error: Exception) -> tuple[str, str] | None:
    """Return what the system has too little of and what to do, None if that is not what the error is about."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many files are open", "raise the limit (ulimit -n), or give a lower --jobs"
    memory = isinstance(error, MemoryError) or any(text in str(error) for text in _MEMORY)
    if error.errno == errno.ENOMEM if isinstance(error, OSError) else memory:
        return "there is not enough memory", "ask for less, or free some"
    return None


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
