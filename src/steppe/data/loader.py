"""Batches: training batches as a pure function of seed and epoch, evaluation batches in order."""

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steppe.core.batch import Batch
from steppe.data._device_memory import CopyStream, ahead, resident, sent
from steppe.data.dataset import Images
from steppe.data.normalize import Normalizer
from steppe.data.transforms.basic import Sample, Transform, crop
from steppe.data.transforms.draws import Draws, Plan, RowDraws, map_arrays
from steppe.data.transforms.pil_ops import to_float
from steppe.data.transforms.registry import MIXING, make_steps
from steppe.errors import InputError

_ORDER, _PARTNER, _AUGMENT, _NOISE, _TURN = 1, 2, 3, 4, 5


class Loader:
    """Shuffled, augmented training batches; ``epoch(k)`` yields the same bits whenever it is called.

    Images are augmented first and standardised last, so crop pads with black; cutout fills with the mean colour,
    which becomes zero (the order of the RWP paper's CIFAR recipe). Labels are class indices, or probabilities if a
    step mixes images. An image's partner comes from a second, independent order of the whole training set.
    ``views`` are compositions of steps that replace ``augment``: the first gives x, the others extra["view 2"] and
    so on. Without them, ``crops`` further views are random crops of the augmented image, whose labels they share.
    On a GPU as ``device`` batches are made there: the images stay there as bytes, or are sent batch by batch if
    they do not fit (see `steppe.data._device_memory`), and what a whole epoch draws is sent at once.

    With several processes, each has a Loader with its ``rank`` of ``size`` and yields its rows of the same
    batches. The last batch is left out if a process would get a single image of it, because BatchNorm needs two.

    Raises InputError if the batch is below 1, below 2 per process of several, or larger than the training set,
    the seed is negative, or an augmentation step is unknown or impossible for images of this size.
    """

    def __init__(
        self,
        images: Images,
        *,
        classes: int,
        batch: int,
        augment: Sequence[str],
        normalize: Normalizer,
        seed: int,
        rank: int = 0,
        size: int = 1,
        views: Sequence[Sequence[Transform]] = (),
        crops: int = 0,
        device: torch.device | str = "cpu",
    ):
        if batch < 1:
            raise InputError(f"batch is {batch}; give at least 1")
        if size > 1 and batch < 2 * size:
            raise InputError(
                f"batch is {batch} on {size} processes; give at least {2 * size}, or start fewer processes"
            )
        if batch > len(images):
            raise InputError(
                f"batch is {batch} and only {len(images)} images are trained on; give a smaller batch"
            )
        if seed < 0:
            raise InputError(f"seed is {seed}; give 0 or a positive whole number")
        self.images, self.classes, self.batch = images, classes, batch
        self._labels = images.y.numpy().copy()  # sending a tensor to another process moves its memory
        self.normalize, self.seed = normalize, seed
        self.rank, self.size = rank, size
        self.device = torch.device(device)
        self.sends = self.device.type != "cpu"
        self.steps = list(views[0]) if views else make_steps(augment, blank=normalize.colour)
        self.further, self.crops_augmented = views[1:] or [[crop]] * crops, not views
        self.mixes = not views and any(name in MIXING for name in augment)
        # a step that these images do not allow is refused here
        for step in itertools.chain(self.steps, *self.further):
            step.draw(Draws(np.random.default_rng(0)), (1, *images.pixels.shape[1:]))

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.batch)
        return whole + (rest >= 2 * self.size)

    def rows(self, count: int) -> slice:
        """Return this process's rows of a batch of ``count`` images; processes differ by at most one row."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def epoch(self, number: int, first: int = 0, stride: int = 1) -> Iterator[Batch]:
        """Yield the batches of one epoch: x (B, C, H, W) float32, y, and index (B,) into the images.

        Only every ``stride``-th batch from ``first`` on; each has the bits it has without a stride.
        """
        plans = self._plans(number, first, stride)
        if not self.sends:
            for plan in plans:
                noise = {k: torch.from_numpy(v) for k, v in self._noise(plan).items()}
                yield self._batch(map_arrays(torch.from_numpy, plan), self.images, noise)
            return
        of_epoch, copies = list(plans), CopyStream(self.device)
        images = resident(self.images, self.device)
        sending = ahead(copies.send(self._content(plan, copies if images is None else None)) for plan in of_epoch)
        for plan, content in zip(sent(of_epoch, self.device), sending, strict=True):
            yield self._batch(plan, images, copies.arrived(content))

    def _plans(self, number: int, first: int, stride: int) -> Iterator[Plan]:
        """Yield what is drawn for each of these batches of an epoch, in this process's rows of them."""
        purposes = {"index": _ORDER} | ({"partner": _PARTNER} if self.mixes else {})
        orders = {
            name: np.random.default_rng([self.seed, purpose, number]).permutation(len(self.images))
            for name, purpose in purposes.items()
        }
        rng = np.random.default_rng([self.seed, _AUGMENT, number])
        for i in range(len(self)):
            whole = min(self.batch, len(self.images) - i * self.batch)
            rows = self.rows(whole)
            shape = (rows.stop - rows.start, *self.images.pixels.shape[1:])
            index = orders["index"][i * self.batch : (i + 1) * self.batch][rows]
            draws = RowDraws(rng, rows, whole, self._turns[index] ^ (number % 2 == 0))
            steps = [step.draw(draws, shape) for step in self.steps]
            if i % stride != first:
                continue
            views = []
            for view, further in enumerate(self.further, 2):
                draws = RowDraws(np.random.default_rng([self.seed, _AUGMENT, number, i, view]), rows, whole)
                views.append([step.draw(draws, shape) for step in further])
            plan: Plan = {"steps": steps, "views": views, "position": (number, i, rows, whole)}
            for name, order in orders.items():
                plan[name] = order[i * self.batch : (i + 1) * self.batch][rows]
                plan[f"y of {name}"] = self._labels[plan[name]]
            yield plan

    @cached_property
    def _turns(self) -> np.ndarray:
        """Half of the images, at random: what alternates with each epoch begins with the other half."""
        return np.random.default_rng([self.seed, _TURN]).random(len(self.images)) < 0.5

    def _content(self, plan: Plan, copies: CopyStream | None) -> dict[str, Tensor]:
        """Return what is sent for a batch alone: its noise, and its images if they are not on the device."""
        content = {name: torch.from_numpy(noise) for name, noise in self._noise(plan).items()}
        if copies is not None:
            for name in ("index", "partner") if self.mixes else ("index",):
                content[f"images of {name}"] = copies.rows(self.images, torch.from_numpy(plan[name]))
        return content

    def _noise(self, plan: Plan) -> dict[str, np.ndarray]:
        """Return the noise of each view, if any, seeded by epoch, batch number and view."""
        if not self.normalize.noise:
            return {}
        epoch, number, rows, whole = plan["position"]
        shape = (whole, *self.images.pixels.shape[1:])
        return {
            f"noise {view}": np.random.default_rng([self.seed, _NOISE, epoch, number, view]).standard_normal(
                shape, np.float32
            )[rows]
            for view in range(1, len(self.further) + 2)
        }

    def _batch(self, plan: Plan, images: Images | None, content: dict[str, Tensor]) -> Batch:
        """Return the batch of a plan from ``images``, or from those in ``content``."""

        def sample(name: str) -> Sample:
            x = content[f"images of {name}"] if images is None else images.at(plan[name])
            y = plan[f"y of {name}"]
            mixed = self.mixes and not y.is_floating_point()
            return Sample(x, F.one_hot(y, self.classes).float() if mixed else y)

        own = augmented = sample("index")
        partner = sample("partner") if self.mixes else own
        for step, draw in zip(self.steps, plan["steps"], strict=True):
            augmented = step.apply(augmented, partner, draw)
        views = {}
        for view, (steps, draws) in enumerate(zip(self.further, plan["views"], strict=True), 2):
            further = augmented if self.crops_augmented else own
            for step, draw in zip(steps, draws, strict=True):
                further = step.apply(further, further, draw)
            views[f"view {view}"] = self._standardised(further.x, content.get(f"noise {view}"))
        x = self._standardised(augmented.x, content.get("noise 1"))
        return Batch(x, augmented.y, plan["index"], views)

    def _standardised(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """Return images as network inputs, with this noise of unit deviation."""
        clean = self.normalize.standardise(to_float(x))
        return clean if noise is None else clean + self.normalize.noise * noise


def evaluation_batches(
    images: Images, batch: int, normalize: Normalizer, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """Yield all images in order, normalised and not augmented, on ``device``."""
    device = torch.device(device)
    bounds = [(start, min(start + batch, len(images))) for start in range(0, len(images), batch)]
    if device.type != "cpu" and not normalize.noise and (copy := resident(images, device)) is not None:
        images = copy
    elif device.type != "cpu":
        yield from _sent_evaluation(images, bounds, normalize, CopyStream(device))
        return
    for start, stop in bounds:
        x, index = normalize(images.at(slice(start, stop))), torch.arange(start, stop, device=images.y.device)
        yield Batch(x, images.y[start:stop], index)


def _sent_evaluation(
    images: Images, bounds: list[tuple[int, int]], normalize: Normalizer, copies: CopyStream
) -> Iterator[Batch]:
    """Yield the batches of images that are not on the device."""

    def content(start: int, stop: int) -> dict[str, Tensor]:
        x = images.at(slice(start, stop))
        # noise is a function of the bytes of each image, which the host reads
        x = normalize(x) if normalize.noise else x
        return {"x": x, "y": images.y[start:stop], "index": torch.arange(start, stop)}

    for sending in ahead(copies.send(content(*part)) for part in bounds):
        tensors = copies.arrived(sending)
        x = tensors["x"] if normalize.noise else normalize(tensors["x"])
        yield Batch(x, tensors["y"], tensors["index"])
