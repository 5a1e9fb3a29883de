"""Top eigenvalues, trace and spectral density of the loss's Hessian, by Hessian-vector products.

A network whose layers can be rescaled without changing the function, as in front of BatchNorm, can have any value
of these. Compare them only under equal weight decay, or together with an adaptive measure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steppe.core.numerics.vector import Vec
from steppe.diagnostics.loss_surface import LossSurface
from steppe.diagnostics.sharpness import SharpnessEstimate, estimate
from steppe.errors import InputError


@dataclass(frozen=True)
class Eigenvalues:
    r"""The largest eigenvalues in descending order, and for each a bound on its distance to a true one.

    The bound is the residual norm :math:`\lVert Hv - \lambda v\rVert` of the unit eigenvector. ``products`` is the
    number of Hessian-vector products.
    """

    values: list[float]
    residuals: list[float]
    products: int


@dataclass(frozen=True)
class Density:
    r"""The spectral density as point masses ``weights``, of sum 1, at ascending ``nodes``.

    ``weights @ f(nodes)`` estimates :math:`\mathrm{tr} f(H) / P` for P parameters.
    """

    nodes: np.ndarray
    weights: np.ndarray

    def smooth(self, at: Sequence[float] | np.ndarray, width: float) -> np.ndarray:
        """Return the density per unit of eigenvalue, with each mass as a Gaussian of this width."""
        z = (np.asarray(at, float)[:, None] - self.nodes[None, :]) / width
        masses: np.ndarray = np.exp(-0.5 * z**2) / (width * np.sqrt(2 * np.pi)) @ self.weights
        return masses


def eigenvalues(
    surface: LossSurface, k: int = 1, *, tolerance: float = 1e-4, products: int = 300, seed: int = 0
) -> Eigenvalues:
    r"""Return the ``k`` algebraically largest eigenvalues of the Hessian :math:`\nabla^2 L(w)`.

    Implicitly restarted Lanczos iteration (ARPACK through `scipy.sparse.linalg.eigsh`) to a relative
    ``tolerance``, or until about ``products`` Hessian-vector products, and at least about three per vector kept;
    the residuals then tell how accurate the values are. A network of at most 64 parameters is solved densely;
    otherwise max(2 k + 1, 20) vectors of its size are kept in double precision.

    Raises InputError if ``k`` is below 1 or above the number of parameters, or second derivatives are not finite.
    """
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

    size = _size(surface)
    if not 1 <= k <= size:
        raise InputError(f"k is {k}; give 1 to {size}, the number of parameters")
    count = 0

    def product(v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return _finite(_to_numpy(surface.hvp(_from_numpy(v, surface))))

    if size <= 64 or k >= size - 1:
        matrix = np.stack([product(row) for row in np.eye(size)])
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        values, vectors = values[-k:], vectors[:, -k:]
    else:
        start = np.random.default_rng(seed).standard_normal(size)
        if not product(
            start
        ).any():  # as of a loss that is piecewise linear; ARPACK needs more than its null space
            return Eigenvalues([0.0] * k, [0.0] * k, count)
        basis = min(size, max(2 * k + 1, 20))
        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        rounds = max(1, products // (basis - k))
        try:
            values, vectors = eigsh(operator, k, which="LA", v0=start, ncv=basis, tol=tolerance, maxiter=rounds)
        except ArpackNoConvergence as error:
            values, vectors = error.eigenvalues, error.eigenvectors
            if len(values) < k:
                # the Hessian restricted to a Krylov space
                values, vectors, space = _lanczos(surface, start, basis)
                count += len(space)
                values, vectors = values[-k:], torch.stack(space, 1).cpu().numpy() @ vectors[:, -k:]
        except ArpackError:
            if product(start).any():
                raise
            return Eigenvalues([0.0] * k, [0.0] * k, count)  # of a loss that is linear in the weights
    order = np.argsort(values)[::-1]
    residuals = [float(np.linalg.norm(product(vectors[:, i]) - values[i] * vectors[:, i])) for i in order]
    return Eigenvalues([float(values[i]) for i in order], residuals, count)


def trace(surface: LossSurface, probes: int = 30, seed: int = 0) -> SharpnessEstimate:
    r"""Return the trace of the Hessian by Hutchinson's estimator, with its standard error.

    The mean of :math:`v^\top H v` over ``probes`` vectors of random signs (Hutchinson, Communications in
    Statistics 18, 1989). The number of probes is fixed, because stopping once the mean settles would be biased.
    Exact for a diagonal Hessian.

    Raises InputError if ``probes`` is below 1, or second derivatives are not finite.
    """
    if probes < 1:
        raise InputError(f"probes is {probes}; give at least 1")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(probes):
        signs = _from_numpy(rng.choice([-1.0, 1.0], _size(surface)), surface)
        values.append(float(np.dot(_to_numpy(signs), _finite(_to_numpy(surface.hvp(signs))))))
    return estimate(values)


def density(surface: LossSurface, steps: int = 40, probes: int = 2, seed: int = 0) -> Density:
    """Return the spectral density by stochastic Lanczos quadrature.

    From each of ``probes`` random unit vectors, ``steps`` of the Lanczos iteration with full reorthogonalisation;
    nodes are the eigenvalues of its tridiagonal matrix, weights the squared first components of their eigenvectors
    (Ghorbani, Krishnan and Xiao, ICML 2019, algorithm 1). Moments up to order 2 ``steps`` - 1 are those of the
    random vectors exactly. Keeps ``steps`` vectors of the size of the network, in double precision.

    Raises InputError if ``steps`` or ``probes`` is below 1, or second derivatives are not finite.
    """
    if steps < 1 or probes < 1:
        raise InputError(f"steps is {steps} and probes is {probes}; give at least 1 of each")
    rng = np.random.default_rng(seed)
    nodes, weights = [], []
    for _ in range(probes):
        values, vectors, _ = _lanczos(surface, rng.standard_normal(_size(surface)), steps)
        nodes.append(values)
        weights.append(vectors[0] ** 2 / probes)
    joined, masses = np.concatenate(nodes), np.concatenate(weights)
    order = np.argsort(joined)
    return Density(joined[order], masses[order])


def _lanczos(surface: LossSurface, start: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray, list[Tensor]]:
    """Return eigenvalues and eigenvectors of the tridiagonal matrix, and the basis of the Krylov space.

    There are fewer than ``steps`` of them if the space is exhausted before.
    """
    basis: list[Tensor] = []
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    v = torch.from_numpy(start).to(surface.params[0].device)
    v = v / v.norm()
    for _ in range(min(steps, len(start))):
        basis.append(v)
        w = _flatten(surface.hvp(_unflatten(v, surface)))
        _finite(w.cpu().numpy())
        diagonal.append(float(w @ v))
        # twice, because a single pass leaves rounding errors of the size of what it removes
        for _ in range(2):
            for b in basis:
                w = w - (w @ b) * b
        length = float(w.norm())
        if length < 1e-10 * max(1.0, *map(abs, diagonal)):
            break
        off_diagonal.append(length)
        v = w / length
    beta = np.array(off_diagonal[: len(diagonal) - 1])
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beta, 1) + np.diag(beta, -1))
    return values, vectors, basis


def _finite(product: np.ndarray) -> np.ndarray:
    if not np.isfinite(product).all():
        raise InputError("the loss has second derivatives that are not finite; look at its weights and inputs")
    return product


def _size(surface: LossSurface) -> int:
    return sum(p.numel() for p in surface.params)


def _flatten(a: Vec) -> Tensor:
    return torch.cat([t.reshape(-1) for t in a if t is not None]).double()


def _unflatten(v: Tensor, surface: LossSurface) -> Vec:
    pieces = torch.split(v, [p.numel() for p in surface.params])
    return [piece.view(p.shape).to(p.dtype) for piece, p in zip(pieces, surface.params, strict=True)]


def _to_numpy(a: Vec) -> np.ndarray:
    return _flatten(a).cpu().numpy()


def _from_numpy(v: np.ndarray, surface: LossSurface) -> Vec:
    return _unflatten(torch.from_numpy(np.ascontiguousarray(v)).to(surface.params[0].device), surface)
