"""From configuration dataclasses to command-line options and back, with settings from a file or a recipe."""

import dataclasses
import re
import shlex
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import docstring_parser
import yaml
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser, Namespace

from steppe.cli import console
from steppe.config import Run, field_types, from_dict, suites, user_code
from steppe.config.docstrings import docstring
from steppe.errors import InputError

MOST = 10_000  # values in a settings file, those behind aliases counted each time


class ConfigFile(ActionConfigFile):
    """A settings file that is checked before it is parsed.

    Raises InputError for a file that is missing, not text or YAML, has no settings, or expands to too many values.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Check the file, then parse it."""
        _check_file(parser, str(values))
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


def _check_file(parser: ArgumentParser, name: str) -> None:
    try:
        text = Path(name).read_bytes().decode()
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            raise ValueError("it is empty")
        _count_values(node, {})
        content = yaml.safe_load(text)
    except OSError as error:
        raise InputError(
            f"config is {name!r}, and it cannot be read ({error.strerror}); give a YAML file"
        ) from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        reason = "it is too deep" if isinstance(error, RecursionError) else reason
        raise InputError(f"config is {name!r}, and parsing it fails ({reason}); give a YAML file") from None
    if not isinstance(content, dict):
        raise InputError(f"config is {name!r}, which holds no settings; write a line for each, as batch: 32")
    options = [o.removeprefix("--") for a in parser._actions for o in a.option_strings]
    groups = {option.partition(".")[0] for option in options if "." in option}
    required = {o.removeprefix("--") for a in parser._actions if a.default is not None for o in a.option_strings}
    lists = {o.removeprefix("--") for a in parser._actions if a.nargs == "*" for o in a.option_strings}
    for key, value in content.items():
        setting = f"{key} is {value!r:.60}"
        inner = value.items() if isinstance(value, dict) else ()
        for option, single in [(key, value), *((f"{key}.{k}", v) for k, v in inner)]:
            if option in lists and isinstance(single, str | int | float):
                raise InputError(f"{option} is {single!r:.60}; write a list, [{single}]")
        if empty := required & {key if value is None else "", *(f"{key}.{k}" for k, v in inner if v is None)}:
            raise InputError(f"{min(empty)} is null in {name}; give a value, or leave the line out")
        if key in groups and not isinstance(value, dict):
            raise InputError(f"{setting} in {name}; write its settings below it, a line for each")
        if key in options and isinstance(value, dict):
            raise InputError(f"{setting} in {name}; it has no settings below it, write a value or a list")


def _count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """Return the number of values in a node; raises ValueError for too many or for a node inside itself."""
    if id(node) in counts:
        if not counts[id(node)]:
            raise ValueError("a value holds itself")
        return counts[id(node)]
    counts[id(node)] = 0
    below = node.value if isinstance(node, yaml.SequenceNode) else ()
    if isinstance(node, yaml.MappingNode):
        below = [part for pair in node.value for part in pair]
    count = 1 + sum(_count_values(part, counts) for part in below)
    if count > MOST:
        raise ValueError(f"it has more than {MOST} values")
    counts[id(node)] = count
    return count


def add_fields(parser: ArgumentParser, cls: type, prefix: str = "") -> None:
    """Add an option per field of a configuration dataclass, nested ones with a dot."""
    hints, descriptions = field_types(cls), _descriptions(cls)
    for f in dataclasses.fields(cls):
        hint, default = hints[f.name], f.default
        if dataclasses.is_dataclass(hint):
            add_fields(parser, typing.cast(type, hint), f"{prefix}{f.name}.")
            continue
        options: dict[str, Any] = {"default": default, "help": descriptions.get(f.name, "")}
        if typing.get_origin(hint) is tuple:
            options |= {
                "type": typing.get_args(hint)[0],
                "nargs": "*",
                "default": list(typing.cast(tuple[str, ...], default)),
            }
        elif hint is bool:
            options |= {"action": ActionYesNo}
        else:
            options["type"] = hint
        parser.add_argument(f"--{prefix}{_option(f)}", **options)


def _descriptions(cls: type) -> dict[str, str]:
    """Return each field's description from the docstrings of the class and its bases."""
    descriptions: dict[str, str] = {}
    for c in cls.__mro__:
        for p in docstring_parser.parse(docstring(c) if dataclasses.is_dataclass(c) else "").params:
            descriptions.setdefault(p.arg_name, " ".join((p.description or "").split()))
    return descriptions


def make(cls: type, options: Namespace) -> Any:
    """Return the configuration with the values of the options."""
    values = options.as_dict()
    return from_dict(cls, {f.name: values[_option(f)] for f in dataclasses.fields(cls)})


def _option(field: dataclasses.Field[Any]) -> str:
    return str(field.metadata.get("option", field.name))


def expand_recipe(argv: Sequence[str]) -> list[str]:
    """Return a command with ``recipe=NAME`` and ``scale=0.02`` written as options."""
    if not argv or argv[0] not in ("train", "compare", "reproduce"):
        return list(argv)
    return [f"--{token}" if re.match("(recipe|scale)=", token) else token for token in argv]


def add_config(parser: ArgumentParser, cls: type, out: str, folder: str) -> None:
    """Add the options of a command that trains.

    They are a settings file, the folder that it writes, a recipe and its scale, and the fields of ``cls``.
    """
    parser.add_argument("--config", action=ConfigFile, help="YAML file with any of these settings")
    parser.add_argument("--out", type=str, default=out, help=folder)
    parser.add_argument(
        "--recipe",
        type=str,
        default=None,
        help="settings of a paper's table: NAME or NAME:VARIANT; a suite of tasks",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the recipe's computation, 1 for all of it"
    )
    add_fields(parser, cls)


_CODE = {
    "models": "model", "model": "model", "datasets": "dataset", "dataset": "dataset", "methods": "method",
    "method": "method", "loss": "loss", "metric": "metric", "optim.name": "optimizer", "code": "",
    "optim.schedule": "schedule",
}  # fmt: skip


def name_code(options: Any, argv: Sequence[str]) -> None:
    """Import the code of the user's, ``module:name``, that the command line itself names.

    What only a settings file names is not imported.

    Raises InputError for a name that cannot be imported.
    """
    for option, value in vars(options).items():
        for text in value if isinstance(value, list | tuple) else [value]:
            if option not in _CODE or not isinstance(text, str):
                continue
            for part in text.split("+") if _CODE[option] in ("method", "optimizer", "model") else [text]:
                reference = user_code.reference_in(part)
                named = reference is not None and any(reference in argument for argument in argv)
                if reference is not None and named and not _is_built_in(_CODE[option], reference):
                    user_code.register(_CODE[option], reference, user_code.load(reference))


def _is_built_in(kind: str, reference: str) -> bool:
    """Return whether what looks like ``module:name`` is a name of ours with its settings."""
    prefix = reference.partition(":")[0]
    if kind == "dataset":
        from steppe import data

        return prefix in {name.partition(":")[0] for name in data.names()}
    if kind == "method":
        from steppe import methods

        return prefix in methods.METHODS
    return kind in ("optimizer", "schedule") and prefix.split(".")[0] in ("torch", "schedulefree")


def configuration(
    add_arguments: Callable[[ArgumentParser], None], cls: type, options: Namespace, command: str
) -> Any:
    """Return the run or comparison (``cls``) of a command; print a line about its recipe, if it has one.

    ``add_arguments`` adds the command's options to a parser. Options that the command line or its file sets
    explicitly replace those of the recipe.

    Raises InputError for a scale without a recipe, and whatever the recipe or the configuration refuses.
    """
    name_code(options.as_flat(), shlex.split(command)[2:])
    if options.recipe is None:
        if options.scale != 1:
            raise InputError(f"scale is {options.scale:g} and there is no recipe to scale; add --recipe NAME")
        return make(cls, options)
    if suites.is_suite(options.recipe):
        raise InputError(f"recipe is {options.recipe!r}, a suite of several tasks; use steppe compare")
    from steppe.cli.progress import Decoding
    from steppe.experiments.recipe_scaling import scaled_run, scaled_study

    parser = ArgumentParser()
    add_arguments(parser)
    explicit = vars(parser.parse_args(shlex.split(command)[2:], defaults=False).as_flat())
    fields = field_types(cls)
    overrides = {k: v for k, v in explicit.items() if k.partition(".")[0] in fields}
    terminal = console.console()
    with Decoding(terminal) as progress:
        scale = scaled_run if cls is Run else scaled_study
        config, lines = scale(options.recipe, options.scale, overrides, progress)
    console.print_text(terminal, "\n".join(lines))
    return config
