"""The command line: from arguments to a command, and from errors to one line and an exit code."""

import argparse
import contextlib
import errno
import importlib
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from steppe import __version__
from steppe.cli import console
from steppe.cli.commands import COMMANDS
from steppe.cli.help_text import EXAMPLES
from steppe.cli.options import expand_recipe
from steppe.distributed.forkserver import kill_workers
from steppe.errors import InputError, RunError, unknown

_DISTRIBUTED = ("compare", "train")  # commands that the processes of a torchrun job run together
_TRAINS = ("compare", "reproduce", "train", "tune")  # commands that need forked workers, locks and atomic renames


class _UsageError(Exception):
    """Carries the parser's message."""


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _UsageError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 (a run failed), 2 (bad input) or 130 (stopped)."""
    console.open_streams()
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    argv = expand_recipe([a for a in argv if a != "--debug"])
    signal.signal(signal.SIGTERM, _interrupt)
    with contextlib.ExitStack() as stack:
        try:
            if console.in_torchrun() and argv and argv[0] in _DISTRIBUTED:
                from steppe.distributed import process_group

                stack.enter_context(process_group.process_group())
            return _run(argv)
        except (InputError, RunError) as error:
            if debug:
                raise
            console.print_error(f"error: {' '.join(str(error).split())}")
            return 2
        except KeyboardInterrupt:
            console.print_error(f"stopped; go on with: {shlex.join(['steppe', *argv])}")
            kill_workers()  # otherwise they are waited for
            return 130
        except BrokenPipeError:
            return 1
        except (MemoryError, RuntimeError, OSError) as error:
            exhausted = _exhausted_resource(error)
            if debug or exhausted is None:
                raise
            problem, remedy = exhausted
            details = next(iter(str(error).splitlines()), "")[:200]
            console.print_error(f"error: {problem}{f' ({details})' if details else ''}; {remedy}")
            return 2


def command_parser(name: str) -> ArgumentParser:
    """Return the parser of one command's options."""
    parser = _Parser(description=COMMANDS[name], epilog=EXAMPLES[name])
    importlib.import_module(f"steppe.cli.commands.{name}").add_arguments(parser)
    return parser


def _run(argv: list[str]) -> int:
    parser = _Parser(
        prog="steppe",
        description="Train networks into flat minima, and compare the methods that promise it.",
        epilog="steppe COMMAND --help shows the options and examples of a command. --debug shows tracebacks.",
        formatter_class=_Formatter,  # add_subcommand passes it on to the commands
    )
    if argv and argv[0] == "--version":
        print(f"steppe {__version__}")
        return 0
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise unknown("command", argv[0], COMMANDS)
    if sys.platform == "win32" and argv and argv[0] in _TRAINS and not {"-h", "--help"} & {*argv}:
        raise InputError(
            f"steppe {argv[0]} needs Linux or macOS; on Windows use WSL, or the library in a loop of yours"
        )
    commands = parser.add_subcommands(required=True, metavar="COMMAND")
    for name, description in COMMANDS.items():
        # only the requested command is imported
        requested = bool(argv) and argv[0] == name
        commands.add_subcommand(name, command_parser(name) if requested else _Parser(), help=description)
    if not argv:
        parser.print_help()
        return 0
    try:
        options = parser.parse_args(argv)
    except _UsageError as usage:
        raise _one_line(str(usage), command_parser(argv[0]) if argv[0] in COMMANDS else parser) from None
    except InputError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        # jsonargparse raises these for values of shapes that it does not expect
        details = next(iter(str(error).splitlines()), "")[:200]
        raise InputError(f"cannot parse the arguments ({details}); --help lists them") from error
    command = importlib.import_module(f"steppe.cli.commands.{argv[0]}")
    code: int = command.run(options[argv[0]], shlex.join(["steppe", *argv]))
    return code


def _one_line(message: str, parser: ArgumentParser) -> InputError:
    """Return the parser's message as one line with the field, the value and the remedy."""
    options = {o.removeprefix("--"): a for a in parser._actions for o in a.option_strings if o.startswith("--")}
    unrecognized = re.search(r"unrecognized arguments: (?:--(\S+)|(\S+))", message) or re.search(
        r"does not accept (?:option|nested key) '([^']+)'()", message
    )
    if unrecognized:
        if unrecognized[1]:
            nested = [o for o in options if o.endswith("." + unrecognized[1])]
            if nested:
                return InputError(f"unknown setting {unrecognized[1]!r}; did you mean {nested[0]!r}?")
            return unknown("setting", unrecognized[1].split("=")[0], options, "--help lists all")
        return InputError(f"unexpected {unrecognized[2]!r}; settings are written --name value, --help lists all")
    if required := re.search(r"arguments are required: (.+)", message):
        names = [name.rpartition(".")[2].strip() for name in required[1].split(",")]
        names = [f"--{name}" if name in options else name.upper() for name in names]
        return InputError(f"not given: {', '.join(names)}; add it, --help says what it is")
    invalid = re.search(r'Parser key "([^"]+)"[^:]*:(.*)', message, re.DOTALL)
    value = re.search(r"(?:Got|Given) value: (.*)", message)
    if invalid and value:
        remedy = next((text for kind, text in _REMEDIES.items() if f"<class '{kind}'>" in message), "")
        choices = re.search(r"Literal\[([^\]]+)\]", message)
        if choices:
            remedy = "choose one of " + choices[1].replace("'", "").removeprefix(", ")
        return InputError(f"{invalid[1]} is {value[1].strip()!r}; {remedy or 'give a value of its type'}")
    if "is not iterable" in message:
        return InputError("a list in the file is a single value; write for example methods: [plain, sam]")
    return InputError(" ".join((invalid[2] if invalid else message).split()))


_REMEDIES = {"int": "give a whole number", "float": "give a number", "str": "give a text, such as '3'"}


class _Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Does not wrap the examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


# messages of torch, oneDNN, CUDA and the interpreter
_MEMORY = ("can't allocate memory", "out of memory", "could not create a primitive", "can't start new thread")


def _exhausted_resource(error: Exception) -> tuple[str, str] | None:
    """Return the problem and the remedy if the error reports a lack of memory, files or space, else None."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many files are open", "raise the limit (ulimit -n), or give a lower --jobs"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full", "free some space and run the same command again"
    memory = isinstance(error, MemoryError) or any(text in str(error) for text in _MEMORY)
    if error.errno == errno.ENOMEM if isinstance(error, OSError) else memory:
        return "there is not enough memory", "use smaller settings, or free some"
    return None


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
