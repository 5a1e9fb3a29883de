"""Directions of landscapes: random ones at the scale of the filters, and planes through checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steppe.core.numerics import vector
from steppe.core.numerics.complex_params import leaf, real_view
from steppe.core.numerics.filters import unit_norms, units_of
from steppe.core.numerics.vector import Vec
from steppe.diagnostics.loss_surface import LossSurface
from steppe.errors import InputError

State = Mapping[str, Tensor]


def random_direction(surface: LossSurface, seed: int = 0) -> Vec:
    r"""Return a random direction at the scale of the network's filters.

    :math:`d_k \leftarrow d_k\, \lVert w_k\rVert / \lVert d_k\rVert`: standard normal noise in which each filter
    (or row of a matrix) has the norm of the network's filter; biases and norm parameters do not move (Li et al.,
    NeurIPS 2018, section 4). The noise is drawn on the CPU and depends only on ``seed`` and the shapes:
    networks of one architecture have the same directions, each at the scale of its own filters. At 1 on the axis
    the change is as large as the weights.
    """
    rng = torch.Generator().manual_seed(seed)
    like = [torch.empty(p.shape) for p in surface.params]
    direction: Vec = []
    for p, owner, noise in zip(surface.params, surface.owners, vector.gaussian(like, rng), strict=True):
        if noise is None or leaf(p).ndim <= 1:
            direction.append(None)
            continue
        units, d = units_of(p, owner), noise.to(p)
        direction.append(d * (unit_norms(p.detach(), units) / (unit_norms(d, units) + 1e-10)))
    return direction


@dataclass(frozen=True)
class Plane:
    """The plane of the first two principal components of R checkpoints.

    Attributes:
        mean: Mean weights of the checkpoints, the plane's origin.
        axes: Two orthonormal directions.
        coordinates: (R, 2) coordinates of each checkpoint's projection.
        residuals: (R,) distance of each checkpoint from the plane.
        explained: Share of the checkpoints' variance along each axis.
    """

    mean: Vec
    axes: tuple[Vec, Vec]
    coordinates: np.ndarray
    residuals: np.ndarray
    explained: tuple[float, float]

    def nearest(self, x: float, y: float) -> int:
        """Return the index of the checkpoint whose projection is nearest to a point."""
        return int(np.argmin(np.hypot(self.coordinates[:, 0] - x, self.coordinates[:, 1] - y)))


def principal_plane(surface: LossSurface, states: Sequence[State]) -> Plane:
    """Return the plane of the two largest principal components of checkpoints' trainable weights.

    Centred, not scaled, in float64, from the Gram matrix of the checkpoints, so that only one tensor of all of
    them is in memory at a time. Checkpoints may come from several runs of one architecture that share a start. The
    sign of each axis is such that the last checkpoint's coordinate is not negative.

    Raises:
        InputError: There are fewer than three checkpoints, or one lacks a parameter or has another shape.
    """
    if len(states) < 3:
        raise InputError(f"{len(states)} checkpoints span no plane; give at least 3")
    names = parameter_names(surface)
    gram = np.zeros((len(states), len(states)))
    for name in names:
        x = _centred(states, name, surface)[0]
        gram += x @ x.T
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.maximum(values[::-1][:2], 0), vectors[:, ::-1][:, :2]
    if values[1] <= 1e-14 * max(values[0], 1e-300):
        raise InputError("the checkpoints lie on one line and span no plane; give others")
    shares = vectors / np.sqrt(values)
    coordinates = gram @ shares
    signs = np.where(coordinates[-1] < 0, -1.0, 1.0)
    coordinates, shares = coordinates * signs, shares * signs
    mean: Vec = []
    axes: tuple[Vec, Vec] = ([], [])
    for name, p in zip(names, surface.params, strict=True):
        x, middle = _centred(states, name, surface)
        mean.append(torch.from_numpy(middle).to(p).view(p.shape))
        for axis, share in zip(axes, shares.T, strict=True):
            axis.append(torch.from_numpy(share @ x).to(p).view(p.shape))
    residuals = np.sqrt(np.maximum(np.diag(gram) - (coordinates**2).sum(1), 0))
    total = max(float(np.trace(gram)), 1e-300)
    return Plane(mean, axes, coordinates, residuals, (float(values[0]) / total, float(values[1]) / total))


def parameter_names(surface: LossSurface) -> list[str]:
    """Return the trainable parameters' names, in the surface's order."""
    names = {id(p): n for n, p in surface.net.named_parameters()}
    return [names[id(leaf(p))] for p in surface.params]


def tensor_of(state: State, name: str, like: Tensor) -> Tensor:
    """Return a checkpoint's tensor, as its real view if ``like`` is one.

    Raises InputError if it is missing or has another shape than ``like``.
    """
    if name not in state:
        raise InputError(f"a checkpoint has no {name}; give checkpoints of this network's architecture")
    tensor = state[name] if like.is_complex() else real_view(state[name])
    if tensor.shape != like.shape:
        shapes = f"{tuple(tensor.shape)}, not {tuple(like.shape)}"
        raise InputError(f"a checkpoint's {name} is {shapes}; give checkpoints of this network's architecture")
    return tensor


def _centred(states: Sequence[State], name: str, surface: LossSurface) -> tuple[np.ndarray, np.ndarray]:
    """Return one parameter of all checkpoints minus its mean, and the mean."""
    like = real_view(surface.net.get_parameter(name))
    tensors = [tensor_of(s, name, like).detach().reshape(-1).double().cpu() for s in states]
    x = torch.stack(tensors).numpy()
    mean: np.ndarray = x.mean(0)
    return x - mean, mean
