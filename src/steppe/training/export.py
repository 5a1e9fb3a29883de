"""Export of a run's deployed network as a plain module.

    steppe export out/runs/0123456789ab flat

writes ``flat/model.safetensors`` (the weights under the network's own names), ``flat/model.json`` (network,
classes, normalisation, origin) and ``flat/model.pt2`` (a torch.export program for any batch size), with ``--onnx``
also ``flat/model.onnx``. Each file is read back and must predict what the method itself predicts on random pixels:
the run's record has what is needed of its images.
"""

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from steppe.config import Run
from steppe.core.method import Method
from steppe.core.numerics.complex_params import real_view, with_type_of
from steppe.data.dataset import RESIZE, DataSet, Images
from steppe.data.loader import evaluation_batches
from steppe.data.normalize import Normalizer
from steppe.errors import InputError
from steppe.records import make_folder, write_json, write_text
from steppe.training.checkpoint.file import REMEDY, TRAIN_AGAIN
from steppe.training.checkpoint.save_and_resume import CheckpointStore
from steppe.training.evaluation import to_model_format
from steppe.training.factories import make_model, make_network, make_optimizer
from steppe.training.run import CONFIG, digest, load_images, read_run, stored_images

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
    soup: tuple[Mapping[str, Tensor], Any] | None = None,
) -> dict[str, Any]:
    """Write a run's deployed network to the folder ``out`` and return the content of ``model.json``.

    ``which`` chooses the weights of the best validation epoch or the last ones, ``output`` one of several averages
    by its name, instead of the one with the best validation. ``soup`` are other weights of the run's network, and
    what ``model.json`` says of them.

    Raises:
        InputError: The folder is not a run's or has no checkpoint, the method deploys several networks, or onnx is
            True and not installed. Of an older run also that its images are missing or have changed.
        RunError: ``out`` cannot be written.
    """
    if onnx and not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        raise InputError("onnx is not installed; pip install 'steppe[onnx]', or leave --onnx out")
    run = read_run(folder)
    images, normalize = _input(folder, run)
    method = run.method
    with torch.random.fork_rng():
        net, state, epoch = _restored(folder, run, method, images, which)
        like = real_view(next(net.parameters()))
        if output is not None and method.choose(state, {output: 0}) is None:
            raise InputError(f"{run.label} has no average {output!r} to choose; its record lists its outputs")
        model = with_type_of(method.deployed_model(net, state, lambda: make_model(run, images)), net).eval()
        fresh = with_type_of(make_model(run, images), net).eval()
    if soup is not None:
        model.load_state_dict(soup[0])
    net.eval()
    x = to_model_format(next(evaluation_batches(images.test, IMAGES, normalize)), like).x
    with torch.no_grad():
        expected = method.predict(net, state, x) if soup is None else model(x)
        _compare(model(x), expected, "the deployed network", run.label)
    make_folder(out)
    written = {"safetensors": "model.safetensors", "torch.export": "model.pt2"}
    # not by safetensors, whose files are private
    write_text(
        out / written["safetensors"], save({k: v.contiguous().clone() for k, v in model.state_dict().items()})
    )
    fresh.load_state_dict(load_file(out / written["safetensors"]))
    with torch.no_grad():
        _compare(fresh(x), expected, written["safetensors"], run.label)
    _write_program(fresh, x, expected, out / written["torch.export"], run.label)
    if onnx:
        written["onnx"] = "model.onnx"
        _write_onnx(fresh, x[:2], expected[:2], out / written["onnx"], run.label)
    content = {
        "model": run.model,
        "parameters": sum(p.numel() for p in fresh.parameters()),
        "classes": list(images.classes),
        "input": {
            "shape": [None, images.channels, images.size, images.size],
            "resize": f"{RESIZE.name.lower()}, antialiased (Pillow), to the shape whatever the aspect ratio",
            "pixels": "(value / 255 - mean) / std per channel",
            "mean": list(normalize.mean),
            "std": list(normalize.std),
        },
        "output": "logits",
        "method": run.label,
        "dataset": run.dataset,
        "seed": run.seed,
        "epoch": epoch,
        "weights": which,
        **({} if output is None else {"output": output}),
        **({} if soup is None else {"soup": soup[1]}),
        "run": digest(run),
        "files": written,
    }
    write_json(out / "model.json", content)
    return content


def _input(folder: Path, run: Run) -> tuple[DataSet, Normalizer]:
    """Return random images of the shape of a run's, and its normalisation; older records need its own images."""
    stored = stored_images(folder)
    if not {"classes", "channels", "size", "mean", "std", "train"} <= stored.keys():
        images = load_images(folder)
        return images, Normalizer.of(run.data.normalize, images.train)
    try:
        shape = (IMAGES, stored["channels"], stored["size"], stored["size"])
        pixels = torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        rows = torch.arange(stored["train"]) % IMAGES
        train, few = Images(pixels, torch.zeros_like(rows), rows), Images(pixels, torch.zeros(IMAGES).long())
        mean, std = (tuple(map(float, stored[name])) for name in ("mean", "std"))
        images = DataSet(run.dataset, train, few, few, tuple(map(str, stored["classes"])))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder / CONFIG} is damaged (images: {error}); give another run") from None
    return images, Normalizer(mean, std)


def _restored(
    folder: Path, run: Run, method: Method, images: DataSet, which: Which
) -> tuple[nn.Module, nn.Module, int]:
    """Return a run's network, the state of its method, and their epoch."""
    net = make_network(run, method, images)
    optimizer = make_optimizer(run, net)
    step = method.bind(net, optimizer, precision=run.precision, steps=lambda: 1.0)
    method.allocate(step.state, len(images.train), len(images.classes))
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
    return net, step.state, epoch


def _compare(logits: Tensor, expected: Tensor, what: str, method: str) -> None:
    difference = float((logits - expected).abs().max())
    if not difference <= CLOSE * (1 + float(expected.abs().max())):
        raise InputError(
            f"the logits of {what} differ from those of {method} by {difference:.1g}; "
            "the method does not deploy a single network"
        )


def _write_program(model: nn.Module, x: Tensor, expected: Tensor, path: Path, method: str) -> None:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    with warnings.catch_warnings():
        # torch 2.11 warns about its own reading of the file
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        again: Any = torch.export.load(path).module()
    with torch.no_grad():
        _compare(again(x), expected, path.name, method)
        _compare(again(x[:1]), expected[:1], path.name, method)


def _write_onnx(model: nn.Module, x: Tensor, expected: Tensor, path: Path, method: str) -> None:
    from onnx.reference import ReferenceEvaluator

    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        model, (x,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False, external_data=False
    )
    again = ReferenceEvaluator(str(path))
    (logits,) = again.run(None, {again.input_names[0]: x.cpu().numpy()})
    _compare(torch.from_numpy(logits).to(expected), expected, path.name, method)
