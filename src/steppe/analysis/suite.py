"""All measures of one network within a budget of seconds, as plain data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steppe.analysis.load_run import TrainedRun
from steppe.core.numerics import vector
from steppe.core.numerics.vector import Vec
from steppe.data.dataset import Images
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

FORMAT = 2
DRAWS = 30  # networks drawn per sigma of a PAC-Bayes bound
Say = Callable[[str], None]


@dataclass(frozen=True)
class SuiteSettings:
    """What is measured and how; networks are compared only where all of it is equal.

    Attributes:
        samples: Images that everything is measured on.
        rho: Radius of sharpness; of adaptive sharpness 10 times that.
        steps: Gradient steps of the worst-case search beside the single one.
        m: Samples per group of m-sharpness.
        sigma: Deviation of isotropic noise on each weight.
        gamma: Deviation of filter noise on each weight, in parts of its filter's norm.
        pairs: Antithetic pairs of noise.
        reach: Half the length of a landscape's side, in multiples of the filters' norms.
        line: Points of the line.
        plane: Points of a side of the plane.
        top: Eigenvalues.
        products: Hessian-vector products spent on them, about.
        probes: Hessian-vector products spent on the trace.
        lanczos: Hessian-vector products spent on the spectral density.
        trained: Training images that noise is borne, margins taken and bounds made on.
        draws: Networks drawn per scale of the noise that a network bears.
        halvings: Bisections in search of that scale.
        bounds: Whether PAC-Bayes bounds are made.
        seed: Of every random direction and corruption.
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
        """Return the cost in forward passes and in Hessian-vector products, a gradient counted as three passes."""
        cells = 1 + len(STANDARD) * len(SEVERITIES)
        ascents = 3 * 4 + 4 * self.steps
        borne = 2 * (1 + (self.halvings + 1) * self.draws)
        drawn = len(SIGMAS) * DRAWS if self.bounds else 0
        forward = self.line + self.plane**2 + cells + ascents + 2 * (2 * self.pairs + 1) + borne + drawn
        return forward, 1.3 * self.products + self.top + self.probes + self.lanczos


def affordable(
    trained: TrainedRun, images: Images, seconds: float, *, bounds: bool = False, least: int = 32
) -> SuiteSettings:
    """Return the settings whose cost is about ``seconds``: as many samples as that allows, at most all.

    A forward pass and a Hessian-vector product are timed on a few images. Never fewer samples than ``least``,
    whatever the budget. ``bounds`` tells whether PAC-Bayes bounds are made too.

    Raises InputError if ``seconds`` is not above 0.
    """
    if not seconds > 0:
        raise InputError(f"seconds is {seconds}; give a number above 0")
    few = subset(images, min(64, len(images)))
    surface = trained.surface(few)
    direction = vector.gaussian(surface.params, torch.Generator(surface.params[0].device).manual_seed(0))
    surface.curvature(direction)
    forward, product = (_quickest(look) for look in (surface.value, lambda: surface.curvature(direction)))
    spent = SuiteSettings(1, bounds=bounds).passes
    per_image = (forward * spent[0] + product * spent[1]) / len(few)
    count = max(least, int(seconds / per_image))
    train = len(trained.images.train)
    return SuiteSettings(min(len(images), count), trained=min(train, count), bounds=bounds)


def _quickest(look: Callable[[], Any], times: int = 3) -> float:
    """Return the least of a few durations in seconds: what else the machine does only ever adds to one."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        look()
        found.append(time.perf_counter() - start)
    return min(found)


class Corrupted:
    """The corrupted versions of images, made or read once for all networks that are looked at.

    ``official`` is the folder of the published files, which hold corrupted test images.
    """

    def __init__(self, official: Path | None = None) -> None:
        self.official = official
        self._held: dict[tuple[str, int, int], tuple[Images, dict[tuple[str, int], Images]]] = {}

    @property
    def origin(self) -> str:
        """Return 'generated', or the name of the folder."""
        return "generated" if self.official is None else self.official.resolve().name

    def of(
        self, trained: TrainedRun, chosen: Images, seed: int
    ) -> tuple[Images, Mapping[tuple[str, int], Images]]:
        """Return clean images and their standard corruptions at all severities, in the network's size.

        The images chosen, or as many test images where the files are published.
        """
        side = trained.images.size
        key = (f"{trained.run.dataset} {trained.run.data}", len(chosen), side)
        if key not in self._held:
            clean, wanted = chosen, [(c, s) for c in STANDARD for s in SEVERITIES]
            if self.official is None:
                cells = {(c, s): corrupt(chosen, c, s, seed) for c, s in wanted}
            else:
                clean = subset(trained.images.test, len(chosen))
                kind = (trained.images.classes, side, trained.images.channels, len(clean))
                cells = {(c, s): read_published(self.official, c, s, *kind) for c, s in wanted}
            self._held = {key: (clean, cells)}
        return self._held[key]


def diagnose(
    trained: TrainedRun, images: Images, settings: SuiteSettings, corrupted: Corrupted, say: Say
) -> dict[str, Any]:
    """Return every measure of a network on the images chosen, as plain data.

    ``say`` hears what is being measured.
    """
    began = time.perf_counter()
    chosen = subset(images, settings.samples)
    surface = trained.surface(chosen)
    say("sharpness")
    found: dict[str, Any] = {"format": FORMAT, "settings": asdict(settings), "epoch": trained.epoch}
    found |= asdict(surface.value())
    s = settings
    found["sharpness"] = {
        "sam": sharpness.worst_case_sharpness(surface, s.rho),
        "steps": sharpness.worst_case_sharpness(surface, s.rho, steps=s.steps),
        "m": sharpness.worst_case_sharpness(surface, s.rho, m=s.m),
        "adaptive": sharpness.worst_case_sharpness(surface, 10 * s.rho, ball="adaptive"),
        "isotropic": asdict(sharpness.average_sharpness(surface, s.sigma, pairs=s.pairs, seed=s.seed)),
        "filter": asdict(
            sharpness.average_sharpness(surface, s.gamma, noise="filter", pairs=s.pairs, seed=s.seed)
        ),
    }
    say("Hessian")
    values = hessian.eigenvalues(surface, s.top, tolerance=1e-2, products=s.products, seed=s.seed)
    density = hessian.density(surface, s.lanczos, 1, s.seed)
    found["hessian"] = {
        **asdict(values),
        "trace": asdict(hessian.trace(surface, s.probes, s.seed)),
        "density": {"nodes": density.nodes.tolist(), "weights": density.weights.tolist()},
    }
    say("landscape")
    a, b = (random_direction(surface, s.seed + i) for i in (1, 2))
    along = np.linspace(-s.reach, s.reach, s.line).tolist()
    line = slice_along(surface, [a], [(t,) for t in along])
    side = np.linspace(-s.reach, s.reach, s.plane).tolist()
    plane = slice_along(surface, [a, b], grid(side, side))
    wide = width(line, 0.1)
    found["line"] = {
        "at": along,
        "loss": [p.loss for p in line],
        "accuracy": [p.accuracy for p in line],
        "width": wide if math.isfinite(wide) else None,
    }
    losses = [p.loss for p in plane]
    found["plane"] = {"at": side, "loss": [losses[i : i + s.plane] for i in range(0, len(losses), s.plane)]}
    say("filters and calibration")
    filters = filter_norms(trained.model)
    found["filters"] = {
        "quantiles": np.quantile(filters.norms, np.linspace(0, 1, 401)).tolist(),
        "variation": filters.variation,
    }
    logits, y = surface.outputs(), chosen.y
    found["calibration"] = asdict(calibration(logits, y))
    found["margins"] = np.quantile(margins(logits, y, of="probabilities"), [0.1, 0.25, 0.5, 0.75, 0.9]).tolist()
    found["complexity"] = _complexity(trained, s, say)
    say("corruptions")
    clean, versions = corrupted.of(trained, chosen, s.seed)
    cells = {cell: _accuracy(trained, version) for cell, version in versions.items()}
    found["robustness"] = _summary(Robustness(corrupted.origin, _accuracy(trained, clean), cells))
    found["took"] = time.perf_counter() - began
    return found


def _complexity(trained: TrainedRun, s: SuiteSettings, say: Say) -> dict[str, Any]:
    """Return how much noise the network bears on training images, its norms, and bounds if they are asked for."""
    surface = trained.surface(subset(trained.images.train, s.trained))
    names = parameter_names(surface)
    known = all(name in trained.start for name in names)
    start: Vec | None = None
    if known:
        start = [trained.start[name].to(p) for name, p in zip(names, surface.params, strict=True)]
    count = len(trained.images.train)
    found: dict[str, Any] = {"norms": asdict(norms(surface, count, start, seed=s.seed))}
    weights = vector.clone([*surface.params])
    moved = weights if start is None else vector.add(weights, start, by=-1.0)
    say("noise that is borne")
    options: dict[str, Any] = {"draws": s.draws, "steps": s.halvings, "seed": s.seed}
    sigma = max_tolerated_noise(surface, **options)
    relative = max_tolerated_noise(surface, noise="magnitude", **options)
    found["isotropic"] = asdict(noise_tolerance(surface, sigma, count, start)) if sigma else None
    found["magnitude"] = (
        {"sigma": relative, "start": magnitude_aware(moved, relative, count)} if relative else None
    )
    if s.bounds:
        say("PAC-Bayes bounds")
        made = bounds(surface, start, draws=DRAWS, seed=s.seed)
        found["bounds"] = [asdict(bound) | {"vacuous": bound.vacuous} for bound in made]
    return found


def _accuracy(trained: TrainedRun, images: Images) -> float:
    accuracy = trained.surface(images).value().accuracy
    assert accuracy is not None
    return accuracy


def _summary(table: Robustness) -> dict[str, Any]:
    return {
        "origin": table.origin,
        "clean": table.clean,
        "mean": table.mean,
        "drop": table.drop,
        "severities": [table.at(s) for s in SEVERITIES],
        "families": {name: table.family(name) for name in FAMILIES},
        "corruptions": {name: table.of(name) for name in STANDARD},
    }
