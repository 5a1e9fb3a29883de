"""Where landscapes are cut: random directions at the scale of the filters, and planes through checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from steppe.core.numerics import vector
from steppe.core.numerics.filters import unit_dims, unit_norms
from steppe.core.numerics.vector import Vec
from steppe.diagnostics.loss_surface import LossSurface
from steppe.errors import InputError

State = Mapping[str, Tensor]


def random_direction(surface: LossSurface, seed: int = 0) -> Vec:
    r"""Return a random direction at the scale of the network's filters.

    :math:`d_k \leftarrow d_k\, \lVert w_k\rVert / \lVert d_k\rVert`: standard normal noise in which each filter
    (or row of a matrix) has the length of the network's own one; biases and norm parameters do not move (Li et
    al., NeurIPS 2018, section 4). The noise depends on ``seed`` and the shapes alone and is drawn on the
    processor: networks of one architecture are cut along the same directions, each at the scale of its own
    filters, so that 1 on the axis means a change as large as the weights.
    """
    rng = torch.Generator().manual_seed(seed)
    like = [torch.empty(p.shape) for p in surface.params]
    found: Vec = []
    for p, owner, noise in zip(surface.params, surface.owners, vector.gaussian(like, rng), strict=True):
        if noise is None or p.ndim <= 1:
            found.append(None)
            continue
        dims = tuple(range(1, p.ndim)) if isinstance(owner, nn.Embedding) else unit_dims(p, owner)
        d = noise.to(p)
        found.append(d * (unit_norms(p.detach(), dims) / (unit_norms(d, dims) + 1e-10)))
    return found


def cosine(a: Vec, b: Vec) -> float:
    """Return the cosine of the angle between two directions: near 0 for independent ones."""
    return float(vector.dot(a, b) / (vector.norm(a) * vector.norm(b)))


@dataclass(frozen=True)
class Plane:
    """The plane that fits checkpoints best.

    Attributes:
        mean: The checkpoints' mean weights, the plane's origin.
        axes: Two orthonormal directions in it.
        places: (R, 2) coordinates of each checkpoint's projection.
        residuals: (R,) distance of each checkpoint from the plane.
        explained: Share of the fitted checkpoints' variance along each axis.
    """

    mean: Vec
    axes: tuple[Vec, Vec]
    places: np.ndarray
    residuals: np.ndarray
    explained: tuple[float, float]

    def nearest(self, x: float, y: float) -> int:
        """Return the checkpoint whose projection is nearest."""
        return int(np.argmin(np.hypot(self.places[:, 0] - x, self.places[:, 1] - y)))


def principal_plane(surface: LossSurface, states: Sequence[State], fitted: Sequence[int] | None = None) -> Plane:
    """Return the plane of the two largest principal components of checkpoints' trainable weights.

    Centred, not scaled, in float64, from the Gram matrix of the checkpoints, so that no more than one tensor of
    all of them is in memory at a time. Checkpoints of several runs may stand together if these are of one
    architecture (and say something about each other only if they share a start). ``fitted`` are the positions of
    those that the plane is fitted to, all if not given; every one is projected (the OKDPH paper's figures fit two
    methods' runs of three). Of each axis the sign is that in which the last fitted checkpoint is not negative.

    Raises:
        InputError: There are fewer than three checkpoints, or one lacks a parameter or has another shape.
    """
    rows = list(range(len(states))) if fitted is None else list(fitted)
    if len(rows) < 3:
        raise InputError(f"{len(rows)} checkpoints span no plane; give at least 3")
    names = parameter_names(surface)
    count = len(states)
    gram = np.zeros((count, count))
    for name in names:
        x = _centred(states, name, rows, surface)[0]
        gram += x @ x.T
    inner = gram[np.ix_(rows, rows)]
    values, vectors = np.linalg.eigh(inner)
    values, vectors = np.maximum(values[::-1][:2], 0), vectors[:, ::-1][:, :2]
    if values[1] <= 1e-14 * max(values[0], 1e-300):
        raise InputError("the checkpoints lie on one line and span no plane; give others")
    shares = vectors / np.sqrt(values)
    places = gram[:, rows] @ shares
    signs = np.where(places[rows[-1]] < 0, -1.0, 1.0)
    places, shares = places * signs, shares * signs
    mean: Vec = []
    axes: tuple[Vec, Vec] = ([], [])
    for name, p in zip(names, surface.params, strict=True):
        x, middle = _centred(states, name, rows, surface)
        mean.append(torch.from_numpy(middle).to(p).view(p.shape))
        for axis, share in zip(axes, shares.T, strict=True):
            axis.append(torch.from_numpy(share @ x[rows]).to(p).view(p.shape))
    residuals = np.sqrt(np.maximum(np.diag(gram) - (places**2).sum(1), 0))
    whole = max(float(np.trace(inner)), 1e-300)
    return Plane(mean, axes, places, residuals, (float(values[0]) / whole, float(values[1]) / whole))


def parameter_names(surface: LossSurface) -> list[str]:
    """Return the trainable parameters' names, in the surface's order."""
    held = {id(p): n for n, p in surface.net.named_parameters()}
    return [held[id(p)] for p in surface.params]


def of_state(state: State, name: str, like: Tensor) -> Tensor:
    """Return a checkpoint's tensor; raises InputError if it is missing or has another shape."""
    if name not in state:
        raise InputError(f"a checkpoint has no {name}; give checkpoints of this network's architecture")
    found = state[name]
    if found.shape != like.shape:
        shapes = f"{tuple(found.shape)}, not {tuple(like.shape)}"
        raise InputError(f"a checkpoint's {name} is {shapes}; give checkpoints of this network's architecture")
    return found


def _centred(
    states: Sequence[State], name: str, rows: Sequence[int], surface: LossSurface
) -> tuple[np.ndarray, np.ndarray]:
    """Return one parameter of all checkpoints minus its mean over the fitted ones, and that mean."""
    like = surface.net.get_parameter(name)
    tensors = [of_state(s, name, like).detach().reshape(-1).double().cpu() for s in states]
    x = torch.stack(tensors).numpy()
    middle: np.ndarray = x[list(rows)].mean(0)
    return x - middle, middle
