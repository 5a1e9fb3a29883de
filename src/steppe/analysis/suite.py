"""All measures of one network within a time budget, as plain data."""

import contextlib
import logging
import math
import time
import timeit
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steppe.analysis.endpoint_plane import Progress
from steppe.analysis.load_run import TrainedRun
from steppe.core.numerics import vector
from steppe.core.numerics.complex_params import real_view
from steppe.core.numerics.vector import Vec
from steppe.data.dataset import Images, Samples
from steppe.data.splits import subset
from steppe.diagnostics import hessian, sharpness
from steppe.diagnostics.calibration import calibration, margins
from steppe.diagnostics.capacity_norms import norms
from steppe.diagnostics.corruptions import FAMILIES, SEVERITIES, STANDARD, Robustness, corrupt
from steppe.diagnostics.corruptions.published_sets import read_published
from steppe.diagnostics.filter_norms import filter_norms
from steppe.diagnostics.landscape import grid, slice_along, width
from steppe.diagnostics.landscape_directions import parameter_names, random_direction
from steppe.diagnostics.noise_tolerance import magnitude_aware, max_tolerated_noise, noise_tolerance
from steppe.diagnostics.pac_bayes import SIGMAS, bounds
from steppe.errors import InputError

_log = logging.getLogger(__name__)

FORMAT = 2
_LEAST = 32  # samples, whatever the budget
DRAWS = 30  # networks sampled per sigma of a PAC-Bayes bound


@dataclass(frozen=True)
class SuiteSettings:
    """Settings of all measures; networks are compared only if all settings are equal.

    Attributes:
        samples: Samples for everything but `trained`.
        rho: Radius of sharpness; adaptive sharpness has ten times that.
        steps: Gradient steps of the worst-case search that is measured in addition to a single step.
        m: Samples per group of m-sharpness.
        sigma: Deviation of isotropic noise on each weight.
        gamma: Deviation of filter noise on each weight, relative to its filter's norm.
        pairs: Antithetic pairs of noise.
        reach: Half the length of a landscape's side, in multiples of the filters' norms.
        line: Points of the line.
        plane: Points of a side of the plane.
        top: Eigenvalues.
        products: Approximate number of Hessian-vector products for the eigenvalues.
        probes: Hessian-vector products for the trace.
        lanczos: Hessian-vector products for the spectral density.
        trained: Training samples for noise tolerance, norms and bounds.
        draws: Networks sampled per scale of the noise tolerance.
        halvings: Bisections in the search for that scale.
        bounds: Whether PAC-Bayes bounds are computed.
        seed: Seed of all random directions and corruptions.
    """

    samples: int
    rho: float = 0.05
    steps: int = 5
    m: int = 32
    sigma: float = 0.01
    gamma: float = 0.02
    pairs: int = 8
    reach: float = 1.0
    line: int = 21
    plane: int = 11
    top: int = 2
    products: int = 30
    probes: int = 10
    lanczos: int = 16
    trained: int = 1
    draws: int = 3
    halvings: int = 11
    bounds: bool = False
    seed: int = 0

    @property
    def passes(self) -> tuple[float, float]:
        """Return the cost in forward passes and in Hessian-vector products; a gradient counts as three passes."""
        corruptions = 1 + len(STANDARD) * len(SEVERITIES)
        worst_case = 3 * 4 + 4 * self.steps
        average = 2 * (2 * self.pairs + 1)
        tolerance = 2 * (1 + (self.halvings + 1) * self.draws)
        pac_bayes = len(SIGMAS) * DRAWS if self.bounds else 0
        forward = self.line + self.plane**2 + corruptions + worst_case + average + tolerance + pac_bayes
        return forward, 1.3 * self.products + self.top + self.probes + self.lanczos


def fit_to_budget(trained: TrainedRun, images: Samples, seconds: float, *, bounds: bool = False) -> SuiteSettings:
    """Return settings with as many samples as can be measured in about ``seconds``, but at least 32.

    A forward pass and a Hessian-vector product are timed on a few samples. A budget too small for them is logged.

    Raises InputError if ``seconds`` is not above 0.
    """
    if not seconds > 0:
        raise InputError(f"seconds is {seconds}; give a number above 0")
    few = subset(images, min(64, len(images)))
    surface = trained.surface(few)
    v = vector.gaussian(surface.params, torch.Generator(surface.params[0].device).manual_seed(0))

    def curvature() -> float:
        return float(vector.dot(surface.hvp(v), v))  # a number, which a GPU is waited for

    curvature()
    # the shortest of three durations, because other work on the machine only adds to them
    forward, product = (min(timeit.repeat(f, number=1, repeat=3)) for f in (surface.value, curvature))
    cost = SuiteSettings(1, bounds=bounds).passes
    per_image = (forward * cost[0] + product * cost[1]) / len(few)
    count = max(_LEAST, int(seconds / per_image))
    samples = min(len(images), count)
    if samples * per_image > seconds:
        least = "seconds is %g, less than the %.0f seconds or more that measures take on %d samples, the fewest"
        _log.warning(least, seconds, samples * per_image, samples)
    return SuiteSettings(samples, trained=min(len(trained.images.train), count), bounds=bounds)


class CorruptedImages:
    """Corrupted versions of images, generated or read once for all networks.

    ``published`` is the folder of the published files, which contain corrupted test images.
    """

    def __init__(self, published: Path | None = None) -> None:
        self.published = published
        self._cache: dict[tuple[str, int, int], tuple[Images, dict[tuple[str, int], Images]]] = {}

    @property
    def origin(self) -> str:
        """Return 'generated', or the name of the folder."""
        return "generated" if self.published is None else self.published.resolve().name

    def of(
        self, trained: TrainedRun, images: Images, seed: int
    ) -> tuple[Images, Mapping[tuple[str, int], Images]]:
        """Return clean images and their standard corruptions at all severities, at the network's size.

        The clean images are ``images``, or with published files as many test images.
        """
        size = trained.images.size
        key = (f"{trained.run.dataset} {trained.run.data}", len(images), size)
        if key not in self._cache:
            cells = [(c, s) for c in STANDARD for s in SEVERITIES]
            if self.published is None:
                clean, versions = images, {(c, s): corrupt(images, c, s, seed) for c, s in cells}
            else:
                test = trained.images.test
                assert isinstance(test, Images)
                clean = subset(test, len(images))
                kind = (trained.images.classes, size, trained.images.channels, len(clean))
                versions = {(c, s): read_published(self.published, c, s, *kind) for c, s in cells}
            self._cache = {key: (clean, versions)}  # the images of one data set are enough
        return self._cache[key]


def run_suite(
    trained: TrainedRun, images: Samples, settings: SuiteSettings, corrupted: CorruptedImages, progress: Progress
) -> dict[str, Any]:
    """Return every measure of a network on ``images``, as plain data.

    ``progress`` is called with the name of each measure.
    """
    began, s = time.perf_counter(), settings
    chosen = subset(images, s.samples)
    surface = trained.surface(chosen)
    result: dict[str, Any] = {"format": FORMAT, "settings": asdict(s), "epoch": trained.epoch}
    result |= asdict(surface.value())
    progress("sharpness")
    filter_noise = sharpness.average_sharpness(surface, s.gamma, noise="filter", pairs=s.pairs, seed=s.seed)
    result["sharpness"] = {
        "sam": sharpness.worst_case_sharpness(surface, s.rho),
        "steps": sharpness.worst_case_sharpness(surface, s.rho, steps=s.steps),
        # groups of padded samples have means over unequal numbers of tokens
        "m": sharpness.worst_case_sharpness(surface, s.rho, m=s.m) if trained.goal.weigh is len else None,
        "adaptive": sharpness.worst_case_sharpness(surface, 10 * s.rho, ball="adaptive"),
        "isotropic": asdict(sharpness.average_sharpness(surface, s.sigma, pairs=s.pairs, seed=s.seed)),
        "filter": asdict(filter_noise),
    }
    progress("Hessian")
    density = hessian.density(surface, s.lanczos, 1, s.seed)
    result["hessian"] = {
        **asdict(hessian.eigenvalues(surface, s.top, tolerance=1e-2, products=s.products, seed=s.seed)),
        "trace": asdict(hessian.trace(surface, s.probes, s.seed)),
        "density": {"nodes": density.nodes.tolist(), "weights": density.weights.tolist()},
    }
    progress("landscape")
    a, b = (random_direction(surface, s.seed + i) for i in (1, 2))
    along = np.linspace(-s.reach, s.reach, s.line).tolist()
    line = slice_along(surface, [a], [(t,) for t in along])
    line_width = width(line, 0.1)
    result["line"] = {
        "at": along,
        "loss": [p.loss for p in line],
        "accuracy": [p.accuracy for p in line],
        "width": line_width if math.isfinite(line_width) else None,
    }
    side = np.linspace(-s.reach, s.reach, s.plane).tolist()
    losses = [p.loss for p in slice_along(surface, [a, b], grid(side, side))]
    result["plane"] = {"at": side, "loss": [losses[i : i + s.plane] for i in range(0, len(losses), s.plane)]}
    progress("filters and calibration")
    filters = filter_norms(trained.model)
    result["filters"] = {
        "quantiles": np.quantile(filters.norms, np.linspace(0, 1, 401)).tolist(),
        "variation": filters.variation,
    }
    # these are defined for classes alone, corruptions for classes of images
    result |= dict.fromkeys(("calibration", "margins", "complexity", "robustness"))
    if trained.classifies:
        logits, y = surface.outputs(), torch.cat([part.y for part in surface.batch.parts()])
        result["calibration"] = asdict(calibration(logits, y))
        quantiles = np.quantile(margins(logits, y, of="probabilities"), [0.1, 0.25, 0.5, 0.75, 0.9])
        result["margins"] = quantiles.tolist()
        if isinstance(chosen, Images):
            result["complexity"] = _complexity(trained, s, progress)
        elif isinstance(chosen.x, Tensor) and chosen.x.is_floating_point():
            with contextlib.suppress(InputError):  # a network without layers that have a norm
                result["complexity"] = _complexity(trained, s, progress)
    if trained.classifies and isinstance(chosen, Images):
        progress("corruptions")
        clean, versions = corrupted.of(trained, chosen, s.seed)
        cells = {cell: _accuracy(trained, version) for cell, version in versions.items()}
        result["robustness"] = _robustness(Robustness(corrupted.origin, _accuracy(trained, clean), cells))
    result["took"] = time.perf_counter() - began
    return result


def _complexity(trained: TrainedRun, s: SuiteSettings, progress: Progress) -> dict[str, Any]:
    """Return noise tolerance and norms on training images, and PAC-Bayes bounds if requested."""
    surface = trained.surface(subset(trained.images.train, s.trained))
    names = parameter_names(surface)
    start: Vec | None = None
    if all(name in trained.start for name in names):
        start = [real_view(trained.start[name]).to(p) for name, p in zip(names, surface.params, strict=True)]
    count = len(trained.images.train)
    result: dict[str, Any] = {"norms": asdict(norms(surface, count, start, seed=s.seed))}
    weights = vector.clone([*surface.params])
    moved = weights if start is None else vector.add(weights, start, by=-1.0)
    progress("noise tolerance")
    options: dict[str, Any] = {"draws": s.draws, "steps": s.halvings, "seed": s.seed}
    sigma = max_tolerated_noise(surface, **options)
    relative = max_tolerated_noise(surface, noise="magnitude", **options)
    result["isotropic"] = asdict(noise_tolerance(surface, sigma, count, start)) if sigma else None
    result["magnitude"] = (
        {"sigma": relative, "start": magnitude_aware(moved, relative, count)} if relative else None
    )
    if s.bounds:
        progress("PAC-Bayes bounds")
        values = bounds(surface, start, draws=DRAWS, seed=s.seed)
        result["bounds"] = [asdict(bound) | {"vacuous": bound.vacuous} for bound in values]
    return result


def _accuracy(trained: TrainedRun, images: Images) -> float:
    accuracy = trained.surface(images).value().accuracy
    assert accuracy is not None
    return accuracy


def _robustness(table: Robustness) -> dict[str, Any]:
    return {
        "origin": table.origin,
        "clean": table.clean,
        "mean": table.mean,
        "drop": table.drop,
        "severities": [table.at(s) for s in SEVERITIES],
        "families": {name: table.family(name) for name in FAMILIES},
        "corruptions": {name: table.of(name) for name in STANDARD},
    }
