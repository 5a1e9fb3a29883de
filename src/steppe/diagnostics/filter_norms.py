"""The norms of a network's filters: how evenly training has used them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from steppe.core import param_groups
from steppe.core.model_call import unwrap_model
from steppe.core.numerics.filters import unit_dims, unit_norms
from steppe.errors import InputError


@dataclass(frozen=True)
class FilterNorms:
    """The L2 norms of all filters (and rows of matrices), in order of registration; ``layers`` names each one's.

    Under PyTorch's default initialisation weights are uniform in +-1/sqrt(fan-in), so that the expected squared
    norm of every filter is 1/3 whatever its size: at the start all are alike.
    """

    norms: np.ndarray
    layers: list[str]

    @property
    def variation(self) -> float:
        """Return the coefficient of variation: standard deviation over mean; 0 if all filters are alike."""
        return float(self.norms.std() / self.norms.mean())

    def histogram(self, edges: np.ndarray) -> np.ndarray:
        """Return the share of filters in each bin, those outside the edges in the first and the last."""
        inside = np.clip(self.norms, edges[0], edges[-1])
        shares: np.ndarray = np.histogram(inside, edges)[0] / len(self.norms)
        return shares


def filter_norms(model: nn.Module, *, convolutions: bool = False) -> FilterNorms:
    """Return the norm of every filter: of each output unit of a convolution or linear layer.

    The RWP paper's figure 4 shows their distribution; a narrower one is read there as more balanced filters
    (section 3.4). ``convolutions`` leaves linear layers out.

    Raises InputError if the network has no filter.
    """
    net, _ = unwrap_model(model)
    named = list(net.named_parameters())
    found: list[np.ndarray] = []
    layers: list[str] = []
    for (name, p), owner in zip(named, param_groups.owners(net, [p for _, p in named]), strict=True):
        dims = unit_dims(p, owner)
        if dims is None or (convolutions and p.ndim == 2):
            continue
        with torch.no_grad():
            norms = unit_norms(p.detach().double(), dims).reshape(-1).cpu().numpy()
        found.append(norms)
        layers += [name] * len(norms)
    if not found:
        raise InputError("the model has no convolution or linear layer; there is no filter to measure")
    return FilterNorms(np.concatenate(found), layers)
