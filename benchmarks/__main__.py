"""Run a benchmark: ``python -m benchmarks KIND [NAMES] [options]``, from the root of the repository.

python -m benchmarks params sam rwp              work on parameters alone, next to the usual loops
python -m benchmarks data crop+flip cutmix       augmentation, over batches without any
python -m benchmarks decode PATH                 an archive decoded in threads, by processes, and from the cache
python -m benchmarks models simple-cnn resnet32  a plain step of each network
python -m benchmarks end-to-end --model resnet18 from images to weights, next to PyTorch's loop
python -m benchmarks settings --batch 512        our settings on a CPU, next to PyTorch's
python -m benchmarks store top:32                memory of SAF's logit bank, and its compression
python -m benchmarks overhead                    steps on a trivial network, over loops written by hand
python -m benchmarks path plain sam              files, functions and calls of the package in one step
python -m benchmarks launches sam gsam           operations that a step launches on a GPU besides its passes
python -m benchmarks own-loop --size 16          SAM without our memory setting, over two plain passes
python -m benchmarks scaling                     exponents in parameters, tensors, data, classes, runs
"""

import json
import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import (
    _tables,
    augmentation,
    cpu_settings,
    decoding,
    launches,
    logit_bank,
    models,
    own_loop,
    param_ops,
    pipeline,
    scaling,
    small_steps,
    step_path,
)
from benchmarks._isolated import Setup
from steppe import hardware
from steppe.errors import InputError

Progress = Callable[[str], None]
Results = tuple[Sequence[Any], str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark and print its table or JSON; return the exit code: 0, or 2 for bad input."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(argv)
    if options.kind != "own-loop":  # which starts processes of its own
        hardware.keep_freed_memory()
    try:
        results, table = _KINDS[options.kind](options, _show_progress)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command, environment = shlex.join(["python", "-m", "benchmarks", *argv]), hardware.environment()
    if options.json:
        rows = [asdict(result) for result in results]
        print(json.dumps({"command": command, "environment": environment, "results": rows}, indent=1))
    else:
        machine = f"{environment['processor']}, {environment['device']}, torch {environment['torch']}"
        print(f"{table}\n\n{command}\n{machine}")
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=list(_KINDS), metavar="KIND", help=", ".join(_KINDS))
    parser.add_argument("names", nargs="*", help="methods, steps, networks, settings, forms, axes or a path")
    parser.add_argument("--model", help="network (default: simple-cnn; params: resnet110)")
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=5, help="steps per timing")
    parser.add_argument("--repeats", type=int, default=15, help="timings of each")
    parser.add_argument("--samples", type=int, default=1_281_167, help="store: size of the data set")
    parser.add_argument("--classes", type=int, default=1000, help="store: number of classes")
    parser.add_argument("--past", type=int, default=4, help="store: slots per sample")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


def _show_progress(message: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{message:<40}", end="", file=sys.stderr, flush=True)


def _timing(options: Namespace, progress: Progress) -> dict[str, Any]:
    repeats = options.repeats
    return {
        "steps": options.steps,
        "repeats": repeats,
        "progress": lambda repeat: progress(f"repeat {repeat} of {repeats}"),
    }


def _images(options: Namespace) -> dict[str, Any]:
    return {"batch": options.batch, "size": options.size}


def _params(options: Namespace, progress: Progress) -> Results:
    model = options.model or "resnet110"
    names = options.names or ("sam", "rwp", "gsam", "ema")
    costs = param_ops.params_cost(names, model=model, **_timing(options, progress))
    return costs, _tables.params(costs, model)


def _data(options: Namespace, progress: Progress) -> Results:
    chains = options.names or augmentation.DEFAULT_CHAINS
    costs = augmentation.data_cost(chains, **_images(options), **_timing(options, progress))
    return costs, _tables.data(costs)


def _decode(options: Namespace, progress: Progress) -> Results:
    archive = Path(options.names[0]) if options.names else None
    timing = _timing(options, progress)
    del timing["steps"]
    costs = decoding.decoding_cost(archive, **timing)
    return costs, _tables.decode(costs)


def _models(options: Namespace, progress: Progress) -> Results:
    names = options.names or models.DEFAULT_MODELS
    costs = models.models_cost(names, **_images(options), **_timing(options, progress))
    return costs, _tables.models(costs)


def _end_to_end(options: Namespace, progress: Progress) -> Results:
    model, chains = options.model or "simple-cnn", options.names or pipeline.DEFAULT_CHAINS
    costs = pipeline.end_to_end_cost(chains, Setup(model, **_images(options), **_timing(options, progress)))
    return costs, _tables.end_to_end(costs)


def _settings(options: Namespace, progress: Progress) -> Results:
    model, names = options.model or "simple-cnn", options.names or tuple(cpu_settings.SETTINGS)
    costs = cpu_settings.settings_cost(names, Setup(model, **_images(options), **_timing(options, progress)))
    return costs, _tables.settings(costs)


def _store(options: Namespace, progress: Progress) -> Results:
    costs = []
    for form in options.names or ("top:32", "top:48"):
        progress(form)
        costs.append(
            logit_bank.store_cost(form, samples=options.samples, classes=options.classes, past=options.past)
        )
    return costs, _tables.stores(costs)


def _overhead(options: Namespace, progress: Progress) -> Results:
    names = options.names or tuple(small_steps.BY_HAND)
    costs = small_steps.small_steps_cost(names, **_timing(options, progress))
    return costs, _tables.small_steps(costs)


def _path(options: Namespace, progress: Progress) -> Results:
    paths = step_path.step_paths(options.names or tuple(small_steps.BY_HAND))
    return paths, _tables.step_paths(paths)


def _launches(options: Namespace, progress: Progress) -> Results:
    counts = launches.launches(options.names or launches.SPECS, progress=progress)
    return counts, _tables.launches(counts)


def _own_loop(options: Namespace, progress: Progress) -> Results:
    costs = own_loop.own_loop_cost(size=options.size, **_timing(options, progress))
    return costs, _tables.own_loop(costs)


def _scaling(options: Namespace, progress: Progress) -> Results:
    axes = options.names or scaling.AXES
    growth = scaling.scaling(axes, steps=options.steps, repeats=options.repeats, progress=progress)
    return growth, _tables.scaling(growth)


_KINDS: dict[str, Callable[[Namespace, Progress], Results]] = {
    "params": _params,
    "data": _data,
    "decode": _decode,
    "models": _models,
    "end-to-end": _end_to_end,
    "settings": _settings,
    "store": _store,
    "overhead": _overhead,
    "path": _path,
    "launches": _launches,
    "own-loop": _own_loop,
    "scaling": _scaling,
}

if __name__ == "__main__":
    sys.exit(main())
