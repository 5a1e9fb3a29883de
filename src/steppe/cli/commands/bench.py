"""The command ``steppe bench``: what is measured, and the table that is shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from steppe import hardware, methods
from steppe.bench import tables
from steppe.bench.data import USUAL, data_cost
from steppe.bench.end_to_end import USUAL_CHAINS, end_to_end_cost
from steppe.bench.methods import methods_cost
from steppe.bench.params import params_cost
from steppe.bench.scaling import AXES, scaling
from steppe.bench.settings import SETTINGS, settings_cost
from steppe.bench.store import store_cost
from steppe.bench.training import USUAL_MODELS, models_cost
from steppe.cli import console
from steppe.cli import tables as listing

Tell = Callable[[str], None]
Found = tuple[list[dict[str, Any]], str]


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    kinds = Literal["methods", "params", "data", "models", "end-to-end", "settings", "store", "scaling"]
    parser.add_argument("kind", type=kinds, nargs="?", default="methods", help="what is measured")
    parser.add_argument(
        "names", type=str, nargs="*", default=[], help="methods, augmentation, networks, settings, forms, axes"
    )
    parser.add_argument("--model", type=str, default="simple-cnn", help="network (params: resnet110)")
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=5, help="steps per timing")
    parser.add_argument("--repeats", type=int, default=15, help="timings of each")
    parser.add_argument("--samples", type=int, default=1_281_167, help="store: size of the data set")
    parser.add_argument("--classes", type=int, default=1000, help="store: number of classes")
    parser.add_argument("--past", type=int, default=4, help="store: slots per sample")
    parser.add_argument("--json", action=ActionYesNo, default=False, help="print the results as JSON")


def run(options: Namespace, command: str) -> int:
    """Measure, and print a table or JSON."""
    hardware.keep_freed_memory()
    terminal, environment = console.console(), hardware.environment()
    with terminal.status("starting") as status:
        results, text = measure(options.as_dict(), status.update)
    if options.json:
        print(json.dumps({"command": command, "environment": environment, "results": results}, indent=1))
    else:
        machine = f"{environment['processor']}, {environment['device']}, torch {environment['torch']}"
        console.print_text(terminal, f"{text}\n\n{command}\n{machine}")
    return 0


def measure(given: Mapping[str, Any], tell: Tell) -> Found:
    """Measure what the arguments ask for; return results as plain data, and as a table.

    Raises InputError for a number or a name that is not usable.
    """
    found, text = _KINDS[given["kind"]](given, tell)
    return [one.as_dict() for one in found], text


def _methods(given: Mapping[str, Any], tell: Tell) -> tuple[list[Any], str]:
    costs = methods_cost(
        given["names"] or methods.names(), **_some(given, "model", "batch", "size"), **_timing(given, tell)
    )
    return costs, listing.costs(costs)


def _store(given: Mapping[str, Any], tell: Tell) -> tuple[list[Any], str]:
    stores = []
    for form in given["names"] or ("top:32", "top:48"):
        tell(form)
        stores.append(store_cost(form, **_some(given, "samples", "classes", "past")))
    return stores, listing.stores(stores)


def _params(given: Mapping[str, Any], tell: Tell) -> tuple[list[Any], str]:
    model = given["model"] if given["model"] != "simple-cnn" else "resnet110"
    costs = params_cost(given["names"] or ("sam", "rwp", "gsam", "ema"), model=model, **_timing(given, tell))
    return costs, tables.params(costs, model)


def _data(given: Mapping[str, Any], tell: Tell) -> tuple[list[Any], str]:
    costs = data_cost(given["names"] or USUAL, **_some(given, "batch", "size"), **_timing(given, tell))
    return costs, tables.data(costs)


def _models(given: Mapping[str, Any], tell: Tell) -> tuple[list[Any], str]:
    wanted = {**_some(given, "batch", "size"), **_timing(given, tell)}
    costs = models_cost(given["names"] or USUAL_MODELS, **wanted)
    return costs, tables.training(costs)


def _end_to_end(given: Mapping[str, Any], tell: Tell) -> tuple[list[Any], str]:
    wanted = {**_some(given, "model", "batch", "size"), **_timing(given, tell)}
    costs = end_to_end_cost(given["names"] or USUAL_CHAINS, **wanted)
    return costs, tables.end_to_end(costs)


def _settings(given: Mapping[str, Any], tell: Tell) -> tuple[list[Any], str]:
    wanted = {**_some(given, "model", "batch", "size"), **_timing(given, tell)}
    costs = settings_cost(given["names"] or tuple(SETTINGS), **wanted)
    return costs, tables.settings(costs)


def _scaling(given: Mapping[str, Any], tell: Tell) -> tuple[list[Any], str]:
    grown = scaling(given["names"] or AXES, **_some(given, "steps", "repeats"), tell=tell)
    return grown, tables.scaling(grown)


def _some(given: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: given[name] for name in names}


def _timing(given: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    repeats = given["repeats"]
    return {
        "steps": given["steps"],
        "repeats": repeats,
        "tell": lambda done: tell(f"repeat {done} of {repeats}"),
    }


_KINDS: dict[str, Callable[[Mapping[str, Any], Tell], tuple[list[Any], str]]] = {
    "methods": _methods,
    "store": _store,
    "params": _params,
    "data": _data,
    "models": _models,
    "end-to-end": _end_to_end,
    "settings": _settings,
    "scaling": _scaling,
}
