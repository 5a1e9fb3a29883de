"""Training of one run, from its configuration to its result, in a folder of its own."""

import itertools
import json
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from steppe import data, hardware, records, tracking
from steppe.config import Data, Run, essential, field_types, from_dict, parse_dataset, user_code, with_path
from steppe.core.composition import ActiveWindow, parts
from steppe.core.method import Method
from steppe.core.method.registry import names_in
from steppe.core.schedules import TrainingProgress
from steppe.data.dataset import DataSet, Images
from steppe.data.normalize import Normalizer
from steppe.distributed import collectives
from steppe.errors import InputError
from steppe.training._first_batch import check_first_batch, check_step
from steppe.training.checkpoint.save_and_resume import CHECKPOINT, save_seconds
from steppe.training.factories import make_loader, make_model, make_objective, make_optimizer, model_names
from steppe.training.optimizers import learning_rate
from steppe.training.trainer import ProgressCallback, Trainer, TrainingFailed, TrainingStatus

__all__ = [
    "CHECKPOINT", "CONFIG", "RESULT", "ProgressCallback", "TrainingStatus", "check_augmentation",
    "check_images", "check_run", "digest", "finished_result", "load_data", "load_images", "read_run",
    "stored_images", "train_run",
]  # fmt: skip

CONFIG, RESULT = "config.json", "result.json"


def digest(run: Run) -> str:
    """Return the name of a run's folder."""
    return run.digest()


def load_data(run: Run, progress: Callable[[int, int], None] | None = None) -> DataSet:
    """Return the images of a run; ``progress`` as in `steppe.data.load`."""
    return data.load(run.dataset, run.data, task=run.task, progress=progress)


def load_images(folder: Path) -> DataSet:
    """Return the images of the run in ``folder``; a relative path is that of the training, wherever one is now.

    Raises InputError for a folder that is not a run's, and for images other than those it was trained on.
    """
    require_code(folder)
    run, stored = read_run(folder), stored_images(folder)
    path = stored.get("path")
    located = path is not None and Path(path).exists()
    name = with_path(run.dataset, str(path)) if located else run.dataset
    images = replace(data.load(name, run.data, task=run.task), name=run.dataset)
    check_images(folder, images)
    return images


def require_code(folder: Path, *kinds: str) -> None:
    """Raise InputError if a run's record names code, of these kinds or of any, that the user did not give.

    What the user gave with another source is logged.
    """
    code = (records.read_json_if_exists(folder / CONFIG) or {}).get("code")
    for kind, entry in code.items() if isinstance(code, dict) else ():
        if kind.partition(" ")[0] in (kinds or ("model", "dataset", "loss", "metric", "method")):
            name = str(entry.get("name")) if isinstance(entry, dict) else ""
            user_code.get(kind.partition(" ")[0], name)
            user_code.report_changes(folder, code, user_code.fingerprints({kind: name}))


def report_changed_code(run: Run, folder: Path) -> None:
    """Log what the user gave with another source than the run in ``folder`` has on record, if there is one."""
    stored = records.read_json_if_exists(folder / CONFIG) or {}
    user_code.report_changes(folder, stored.get("code"), user_code_of(run))


def check_images(folder: Path, images: DataSet) -> None:
    """Raise InputError if there is a run in ``folder`` that was trained on other images than these."""
    fingerprint = stored_images(folder).get("fingerprint", images.fingerprint)
    if fingerprint != images.fingerprint:
        kind = "images" if isinstance(images.train, Images) else "data"
        raise InputError(
            f"{folder} was trained on other {kind} than {images.name} has now; choose another --out, or restore "
            f"the {kind}"
        )


def finished_result(run: Run, folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished run, which needs no images; None if the run is not finished.

    Raises InputError if the folder belongs to another configuration, or the result is damaged.
    """
    if not (folder / RESULT).exists():
        return None
    _check_config(folder, run)
    report_changed_code(run, folder)
    return _read_result(folder)


def stored_images(folder: Path) -> dict[str, Any]:
    """Return what a run's record has of its samples; nothing for built-in data and older records.

    ``fingerprint`` and ``path``; ``classes``; ``train``, the number of training samples; of images ``channels``,
    ``size``, ``mean`` and ``std``; of other samples ``task``, ``outputs`` and ``inputs``, the shape, type and, of
    whole numbers, the largest value of each input.
    """
    content = (records.read_json_if_exists(folder / CONFIG) or {}).get("images")
    return content if isinstance(content, dict) else {}


def _images_record(run: Run, images: DataSet) -> dict[str, dict[str, Any]]:
    """Return what `stored_images` reads; nothing for built-in data."""
    if not images.fingerprint:
        return {}
    path = parse_dataset(run.dataset)[1]
    own = user_code.is_registered("dataset", run.dataset)
    location = {} if own or path in ("", "download") else {"path": str(Path(path).expanduser().absolute())}
    content: dict[str, Any] = {"classes": list(images.classes), "train": len(images.train)}
    if isinstance(images.train, Images):
        normalize = Normalizer.of(run.data.normalize, images.train)
        content |= {"channels": images.channels, "size": images.size}
        content |= {"mean": list(normalize.mean), "std": list(normalize.std)}
        if images.task != "classification":
            content |= {"task": images.task, "outputs": images.outputs}
    else:
        content |= {"task": images.task, "outputs": images.outputs, "inputs": _inputs(images.train.x)}
    content |= {"preparation": dict(images.preparation)} if images.preparation else {}
    return {"images": {"fingerprint": images.fingerprint, **location, **content}}


def _inputs(x: Any) -> Any:
    """Return shape and type of a sample's inputs, by name if there are several."""
    if isinstance(x, Mapping):
        return {name: _inputs(value) for name, value in x.items()}
    whole = not x.is_floating_point() and x.numel()
    most = {"most": int(x.max())} if whole and x.dtype != torch.bool else {}
    return {"shape": list(x.shape[1:]), "dtype": str(x.dtype).removeprefix("torch."), **most}


def user_code_of(run: Run) -> dict[str, dict[str, str]]:
    """Return name and source fingerprint of what the run takes from the user's code, by kind."""
    names = {
        "dataset": run.dataset,
        "loss": run.loss,
        "metric": run.metric.removesuffix(":lower").removesuffix(":higher"),
        "optimizer": run.optim.name,
    }
    names |= {f"model {i}" if i else "model": name for i, name in enumerate(model_names(run))}
    methods_ = {f"method {i}": name for i, name in enumerate(names_in(run.label)) if ":" in name}
    return user_code.fingerprints(names | methods_)


def check_augmentation(options: Data, sets: Mapping[str, DataSet]) -> None:
    """Raise InputError for an augmentation if no data set has images; the default has no effect then."""
    if options.augment in ((), Data().augment) or any(isinstance(d.train, Images) for d in sets.values()):
        return
    raise InputError(
        f"data.augment is {' '.join(options.augment)} and {' and '.join(sets)} has no images of whole numbers; "
        "leave it out"
    )


def check_run(run: Run, images: DataSet, *, first: bool = True) -> None:
    """Raise InputError if this run cannot start, for example because its model does not take the images.

    Anything else than built-in networks on classes of images is tried on a batch; the ``first`` run of a network
    and data also checks these themselves.
    """
    tracking.available(run.track)
    save_seconds()
    method = run.method
    with hardware.fork_rng():
        number = itertools.count()
        net = method.build(lambda: make_model(run, images, next(number)))
        method.init(net)
    make_optimizer(run, net)
    per_epoch = len(make_loader(run, images, method))
    learning_rate(run, run.epochs * per_epoch)
    _check_starts(run, method, per_epoch)
    if any(isinstance(part, _BatchNorm) for part in net.modules()):
        _check_batch_norm(run, len(images.train))
    built_in = isinstance(images.train, Images) and not (run.loss or run.metric or run.task or user_code_of(run))
    if not built_in:
        if first:
            check_first_batch(run, images)
        check_step(run, images)


def memory_bytes(run: Run, images: DataSet) -> int:
    """Return the bytes that the run's method stores for all training images between steps."""
    return int(run.method.memory_bytes(len(images.train), images.outputs))


def format_bytes(count: int) -> str:
    """Return a number of bytes with a unit, such as 1.5 MB."""
    value, unit = float(count), "bytes"
    for larger in ("KB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}" if unit != "bytes" else f"{count} bytes"


def train_run(
    run: Run, folder: Path, images: DataSet, progress: ProgressCallback = lambda _: None
) -> dict[str, Any]:
    """Train one run in ``folder``, resuming from its checkpoint if there is one, and return its result.

    The result of a finished run is returned without training. Steps whose loss is not finite are skipped; too many
    of them in a row end the run with status 'failed'. In a process group (``torch.distributed``, as ``steppe
    train`` makes under torchrun) all processes call this together and train the run together.

    Raises:
        InputError: The folder belongs to another configuration or other images, or its checkpoint is damaged.
        RunError: The disk is full or cannot be written, or another process is gone; what was saved is intact.
    """
    world = collectives.current_world()
    with collectives.connected():
        finished = world.on_main_process(lambda: _claim_folder(folder, run, images))
        if finished is not None:
            return finished
        with (
            hardware.fork_rng(),
            hardware.threads(run.threads),
            hardware.deterministic(run.deterministic),
            _trackers(run, folder, images) as trackers,
        ):
            trainer = Trainer(run, folder, images)
            trainer.resume()

            def track(status: TrainingStatus) -> None:
                if status.val_accuracy is not None:
                    trackers.follow()
                progress(status)

            try:
                trainer.train(track)
                result = trainer.result()
            except TrainingFailed as failure:
                result = trainer.result(str(failure))
            world.on_main_process(lambda: records.write_json(folder / RESULT, result))
            world.on_main_process(trainer.store.finish)
            trackers.finish(result)
        return result


def _check_starts(run: Run, method: Method, per_epoch: int) -> None:
    """Refuse a part that is active in no step: it would train plain under the method's name."""
    if run.match == "seconds":  # the number of steps is unknown
        return
    total = run.epochs * per_epoch
    last = TrainingProgress(total - 1, (total - 1) / total, 0.0)
    for part in parts(method):
        if isinstance(part, ActiveWindow):
            active = bool(part.active_steps(total, lambda share: math.nan, run.optim.decay_start))
        else:
            start: float = getattr(part, "start", 0.0) if "start" in part.amounts else 0.0
            active = last.reached(start, "start")
        if not active:
            raise InputError(
                f"method {run.label!r} is active in none of this run's {total} steps ({per_epoch} an epoch); "
                "give start as a share of the training, such as start=0.5, or more epochs"
            )


def _check_batch_norm(run: Run, images: int) -> None:
    """Refuse micro-batches and groups of a single sample, whose variance BatchNorm cannot compute."""
    if run.m is None and run.microbatch is None:
        return
    size = collectives.current_world().size
    batches = [run.batch, *([rest] if (rest := images % run.batch) >= 2 * size else [])]
    for count in {c for batch in batches for c in (batch // size, math.ceil(batch / size))}:
        groups = {count} if run.m is None or run.m >= count else {run.m, count % run.m} - {0}
        if 1 in {group // math.ceil(group / (run.microbatch or group)) for group in groups}:
            raise InputError(
                f"microbatch is {run.microbatch} and m is {run.m}, which divides {count} samples of a batch into "
                f"parts of which one is a single sample, and {run.model} has BatchNorm; give other sizes"
            )


def _claim_folder(folder: Path, run: Run, images: DataSet) -> dict[str, Any] | None:
    """Make the folder this run's, or refuse another run's; return the result if the run is finished."""
    records.make_folder(folder)
    if (folder / CONFIG).exists():
        _check_config(folder, run)
        check_images(folder, images)
        report_changed_code(run, folder)
    else:
        code = user_code_of(run)
        record = _content(run) | _images_record(run, images) | ({"code": code} if code else {})
        records.write_json(folder / CONFIG, record)
    return _read_result(folder) if (folder / RESULT).exists() else None


def _check_config(folder: Path, run: Run) -> None:
    """Raise InputError if the folder is another run's."""
    path, content = folder / CONFIG, _content(run)
    remedy = f"delete the folder {folder} to start this run anew"
    stored = _read(path, ("resolved", "data", "optim"), remedy)
    if not all(isinstance(stored[part], dict) for part in ("data", "optim")):
        raise InputError(f"{path} is damaged: data and optim are not objects; {remedy}")
    if stored["resolved"] != content["resolved"] or _comparable(stored) != _comparable(content):
        raise InputError(f"folder {folder} belongs to another configuration; choose another folder")


def _content(run: Run) -> dict[str, Any]:
    return run.as_dict() | {"resolved": run.method.to_dict()}


def _read_result(folder: Path) -> dict[str, Any]:
    remedy = "delete it, and the run resumes from its checkpoint"
    return _read(folder / RESULT, ("status", "message", "test", "epochs", "seconds"), remedy)


def _read(path: Path, required: Iterable[str], remedy: str) -> dict[str, Any]:
    """Return the object in a file; raises InputError if there is none or a ``required`` key is missing."""
    content = records.read_json(path, remedy)
    missing = [key for key in required if key not in content]
    if missing:
        raise InputError(f"{path} is damaged: it has no {missing[0]}; {remedy}")
    return content


def _comparable(config: dict[str, Any]) -> Any:
    """Return a configuration as JSON has it, without the spelling of the method."""
    return json.loads(
        json.dumps({k: v for k, v in essential(config).items() if k not in ("method", "images", "code")})
    )


def _trackers(run: Run, folder: Path, data: DataSet) -> AbstractContextManager[tracking.TrackedRun]:
    """Return the run's trackers, which the main process alone has."""
    samples = "images" if isinstance(data.train, Images) else "samples"
    metric = make_objective(run, data).metric
    info = tracking.RunInfo(run.title, folder.name, run.as_dict(), metric, samples)
    return tracking.following(run.track if collectives.current_world().is_main_process else (), folder, info)


def read_run(folder: Path) -> Run:
    """Return a run's configuration from its folder; raises InputError if there is none or it is damaged."""
    path = folder / CONFIG
    if not path.exists():
        raise InputError(f"{folder} has no {CONFIG}; give the folder of a run, or of a comparison")
    content = _read(
        path, ("method", "model", "dataset", "seed", "data", "optim"), "give the folder of another run"
    )
    for key in ("resolved", "images", "code"):
        content.pop(key, None)
    try:
        _check_types(Run, content, path)
        run: Run = from_dict(Run, content)
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); give the folder of another run") from None
    return run


def _check_types(cls: type, content: dict[str, Any], path: Path) -> None:
    """Raise InputError for a setting that this version does not have, TypeError for a value of another type."""
    types = field_types(cls)
    for key, value in content.items():
        if key not in types:
            raise InputError(f"{path} has the setting {key!r}, unknown to this version; update steppe")
        if is_dataclass(types[key]):
            _check_types(typing.cast(type, types[key]), value, path)
        elif not _has_type(value, types[key]):
            raise TypeError(f"{key} is {value!r:.40}")


def _has_type(value: Any, hint: Any) -> bool:
    """Return whether a JSON value has the type of a field."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list) and all(_has_type(item, arguments[0]) for item in value)
    if typing.get_origin(hint) is typing.Literal:
        return value in arguments
    if arguments:
        return any(_has_type(value, option) for option in arguments)
    # a JSON number may be an int where a float is expected; bool is a subclass of int
    types = (int, float) if hint is float else hint
    return isinstance(value, types) and (hint is bool or not isinstance(value, bool))
