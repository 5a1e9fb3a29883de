"""Export of a run's deployed network as a plain module.

    steppe export out/runs/0123456789ab flat

writes ``flat/model.safetensors`` (the weights under the network's own names), ``flat/model.json`` (network,
classes, normalisation, origin) and ``flat/model.pt2`` (a torch.export program for any batch size), with ``--onnx``
also ``flat/model.onnx``. Each file is read back and must predict what the method itself predicts on random pixels:
the run's record has what is needed of its images. All of this is done on the processor, wherever the run trained,
so that the files can be read on any machine.
"""

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from steppe import hardware
from steppe.config import Run
from steppe.core.method import Method
from steppe.core.model_call import call_for_logits
from steppe.core.multi_network import MultiNetwork
from steppe.core.numerics.complex_params import real_view, with_type_of
from steppe.core.optimizers.joint import evaluation_weights
from steppe.data.dataset import DataSet, Images, Tensors
from steppe.data.normalize import Normalizer
from steppe.data.sources.pixels import RESIZE
from steppe.errors import InputError
from steppe.records import make_folder, write_json, write_text
from steppe.tasks.losses import NUMBERS
from steppe.training.checkpoint.file import REMEDY, TRAIN_AGAIN
from steppe.training.checkpoint.save_and_resume import CheckpointStore
from steppe.training.evaluation import network_input
from steppe.training.factories import (
    evaluated_batches,
    is_user_model,
    make_model,
    make_network,
    make_optimizer,
    model_names,
)
from steppe.training.monitor import number_of
from steppe.training.run import CONFIG, digest, load_images, read_run, require_code, stored_images

Which = Literal["best", "last"]
CLOSE = 1e-4  # largest difference, as a share of the largest logit
IMAGES = 64  # images on which the files are checked


def export(
    folder: Path,
    out: Path,
    *,
    which: Which = "best",
    output: str | None = None,
    onnx: bool = False,
    network: int | None = None,
    soup: tuple[Mapping[str, Tensor], Any] | None = None,
) -> dict[str, Any]:
    """Write a run's deployed network to the folder ``out`` and return the content of ``model.json``.

    ``which`` chooses the weights of the best validation epoch or the last ones; ``output`` one of several averages
    by its name, instead of the one with the best validation; ``network``, counted from 1, one of the networks of a
    method that trains several. ``soup`` are other weights of the run's network, and what ``model.json`` says of
    them. A network of the user's that torch.export cannot take is written as weights alone, which ``model.json``
    says.

    Raises:
        InputError: The folder is not a run's or has no checkpoint, the method deploys several networks, the run's
            network is code that the user did not name, or onnx is True and not installed. Of an older run also
            that its images are missing or have changed.
        RunError: ``out`` cannot be written.
    """
    if onnx and not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        raise InputError("onnx is not installed; pip install 'steppe[onnx]', or leave --onnx out")
    require_code(folder, "model", "method")
    run = read_run(folder)
    data, normalize = _input(folder, run)
    method = run.method
    with hardware.fork_rng():
        net, state, epoch = _restored(folder, run, method, data, which)
        like = real_view(next(net.parameters()))
        if output is not None and method.choose(state, {output: 0}) is None:
            raise InputError(f"{run.label} has no average {output!r} to choose; its record lists its outputs")
        chosen = _chosen(net, network, run)
        if chosen is None:
            model = method.deployed_model(net, state, lambda: make_model(run, data))
        else:
            assert isinstance(net, MultiNetwork)
            model = net.extract(chosen, lambda: make_model(run, data, number_of(chosen)))
        model = with_type_of(model, net).eval()
        fresh = with_type_of(make_model(run, data, number_of(chosen or "")), net).eval()
    if soup is not None:
        model.load_state_dict(soup[0])
    net.eval()
    samples = data.test.part(slice(0, IMAGES))
    x = network_input(run, next(evaluated_batches(run, data, samples)), like).x
    expected, reason = None, ""
    try:
        with torch.no_grad():
            if soup is not None:
                expected = call_for_logits(model, x)
            else:
                named = {} if chosen is None else method.outputs(net, state, x)
                expected = method.predict(net, state, x) if chosen is None else named[chosen]
    except Exception as error:  # it may need targets, as its own loss does
        if not is_user_model(run):
            raise
        reason = f"it cannot be called on inputs alone ({_short(error)})"
    with torch.no_grad():
        _compare(model, x, expected, "the deployed network", run.label)
    make_folder(out)
    written = {"safetensors": "model.safetensors", "torch.export": "model.pt2"}
    # not by safetensors, whose files are private
    write_text(
        out / written["safetensors"], save({k: v.contiguous().clone() for k, v in model.state_dict().items()})
    )
    fresh.load_state_dict(load_file(out / written["safetensors"]))
    with torch.no_grad():
        _compare(fresh, x, expected, written["safetensors"], run.label)
    try:
        if expected is None:
            raise InputError(reason)
        _write_program(fresh, x, expected, out / written["torch.export"], run.label)
    except Exception as error:
        if not is_user_model(run):
            raise
        reason = reason or _short(error)
        written.pop("torch.export")
    if onnx:
        if expected is None or not isinstance(x, Tensor):
            why = reason if expected is None else "the network takes several inputs"
            raise InputError(f"onnx is True and {why}; leave --onnx out")
        written["onnx"] = "model.onnx"
        _write_onnx(fresh, x[:2], expected[:2], out / written["onnx"], run.label)
    content = {
        "model": model_names(run)[number_of(chosen or "") % len(model_names(run))],
        "parameters": sum(p.numel() for p in fresh.parameters()),
        "classes": list(data.classes),
        "input": _input_description(data, normalize, x),
        **({"preparation": dict(data.preparation)} if data.preparation else {}),
        "output": "logits" if (run.task or data.task) not in NUMBERS else "values",
        "method": run.label,
        "dataset": run.dataset,
        "seed": run.seed,
        "epoch": epoch,
        "weights": which,
        **({} if output is None else {"output": output}),
        **({} if soup is None else {"soup": soup[1]}),
        "run": digest(run),
        "files": written,
        **({"network": network} if network is not None else {}),
        **({"program": f"not written: torch.export refuses the network ({reason})"} if reason else {}),
    }
    write_json(out / "model.json", content)
    return content


def _chosen(net: nn.Module, network: int | None, run: Run) -> str | None:
    """Return the name of the chosen network, None for what the method deploys."""
    if network is None:
        return None
    names = net.names if isinstance(net, MultiNetwork) else []
    if not 1 <= network <= len(names):
        have = f"trains {len(names)}" if names else "trains one network"
        raise InputError(f"network is {network} and {run.label} {have}; give a number from 1, or leave it out")
    return names[network - 1]


def _input_description(data: DataSet, normalize: Normalizer | None, x: Any) -> Any:
    """Return what the network takes: images with their normalisation, or shape and type of each input."""
    if normalize is not None:
        return {
            "shape": [None, data.channels, data.size, data.size],
            "resize": f"{RESIZE.name.lower()}, antialiased (Pillow), to the shape whatever the aspect ratio",
            "pixels": "(value / 255 - mean) / std per channel",
            "mean": list(normalize.mean),
            "std": list(normalize.std),
        }
    if isinstance(x, Mapping):
        return {name: _input_description(data, None, value) for name, value in x.items()}
    return {"shape": [None, *x.shape[1:]], "dtype": str(x.dtype).removeprefix("torch.")}


def _input(folder: Path, run: Run) -> tuple[DataSet, Normalizer | None]:
    """Return random samples of the shape of a run's, and of images the normalisation.

    Older records need the run's own images.
    """
    stored = stored_images(folder)
    if {"inputs", "classes", "outputs", "task", "train"} <= stored.keys():
        return _random_samples(folder, run, stored), None
    if not {"classes", "channels", "size", "mean", "std", "train"} <= stored.keys():
        data = load_images(folder)
        images = isinstance(data.train, Images)
        return data, Normalizer.of(run.data.normalize, data.train) if images else None  # type: ignore[arg-type]
    try:
        shape = (IMAGES, stored["channels"], stored["size"], stored["size"])
        pixels = torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        rows = torch.arange(stored["train"]) % IMAGES
        train, few = Images(pixels, torch.zeros_like(rows), rows), Images(pixels, torch.zeros(IMAGES).long())
        mean, std = (tuple(map(float, stored[name])) for name in ("mean", "std"))
        about = {key: stored[key] for key in ("task", "outputs", "preparation") if key in stored}
        images_ = DataSet(run.dataset, train, few, few, tuple(map(str, stored["classes"])), **about)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder / CONFIG} is damaged (images: {error}); give another run") from None
    return images_, Normalizer(mean, std)


def _random_samples(folder: Path, run: Run, stored: dict[str, Any]) -> DataSet:
    generator = torch.Generator().manual_seed(0)

    def tensor(about: Any) -> Any:
        if "shape" not in about or not isinstance(about["shape"], list):
            return {name: tensor(value) for name, value in about.items()}
        shape, dtype = (IMAGES, *about["shape"]), getattr(torch, about["dtype"])
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(dtype)
        return torch.randint(int(about.get("most", 1)) + 1, shape, generator=generator).to(dtype)

    try:
        few = Tensors(tensor(stored["inputs"]))
        train = few.take(np.arange(int(stored["train"])) % IMAGES)
        classes = tuple(map(str, stored["classes"]))
        shared = {
            "task": stored["task"],
            "outputs": stored["outputs"],
            "preparation": stored.get("preparation", {}),
        }
        return DataSet(run.dataset, train, few, few, classes, **shared)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{folder / CONFIG} is damaged (images: {error}); give another run") from None


def _restored(
    folder: Path, run: Run, method: Method, images: DataSet, which: Which
) -> tuple[nn.Module, nn.Module, int]:
    """Return a run's network, the state of its method, and their epoch."""
    net = make_network(run, method, images, torch.device("cpu"))
    optimizer = make_optimizer(run, net, trains=False)
    step = method.bind(net, optimizer, precision=run.precision, steps=lambda: 1.0)
    method.allocate(step.state, len(images.train), images.outputs)
    store = CheckpointStore(folder, net, step, optimizer, run.seed)
    try:
        saved = store.resume()
        if saved is None:
            raise InputError(f"{folder} has no checkpoint; train the run first")
        epoch = int(saved["epoch"] if which == "last" else saved["best"]["epoch"])
        if which == "best":
            store.load_best(epoch)
    except InputError as error:
        raise InputError(str(error).replace(REMEDY, TRAIN_AGAIN)) from error
    with evaluation_weights(optimizer):
        weights = {k: v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(weights)
    return net, step.state, epoch


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"


def _compare(model: Any, x: Any, expected: Tensor | None, what: str, method: str) -> None:
    """Raise InputError unless a model predicts what is expected; None for one without predictions."""
    if expected is not None:
        _compare_logits(call_for_logits(model, x), expected, what, method)


def _compare_logits(logits: Tensor, expected: Tensor, what: str, method: str) -> None:
    difference = float((logits - expected).abs().max())
    if not difference <= CLOSE * (1 + float(expected.abs().max())):
        raise InputError(
            f"the logits of {what} differ from those of {method} by {difference:.1g}; "
            "the method does not deploy a single network"
        )


def _write_program(model: nn.Module, x: Any, expected: Tensor, path: Path, method: str) -> None:
    batch = torch.export.Dim("batch", min=1)

    def first(count: int | None) -> Any:
        return x[:count] if isinstance(x, Tensor) else {name: value[:count] for name, value in x.items()}

    if isinstance(x, Tensor):
        program = torch.export.export(model, (first(2),), dynamic_shapes=({0: batch},))
    else:
        program = torch.export.export(model, (), first(2), dynamic_shapes={name: {0: batch} for name in x})
    torch.export.save(program, path)
    with warnings.catch_warnings():
        # torch 2.11 warns about its own reading of the file
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        again: Any = torch.export.load(path).module()
    with torch.no_grad():
        _compare(again, x, expected, path.name, method)
        _compare(again, first(1), expected[:1], path.name, method)


def _write_onnx(model: nn.Module, x: Tensor, expected: Tensor, path: Path, method: str) -> None:
    from onnx.reference import ReferenceEvaluator

    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        model, (x,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False, external_data=False
    )
    again = ReferenceEvaluator(str(path))
    (logits,) = again.run(None, {again.input_names[0]: x.cpu().numpy()})
    _compare_logits(torch.from_numpy(logits).to(expected), expected, path.name, method)
