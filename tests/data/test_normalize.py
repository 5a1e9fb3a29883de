"""Normalization against the definition of mean and standard deviation."""

import numpy as np
import pytest
import torch
from data.test_loader import images

from steppe.data.loader import evaluation_batches
from steppe.data.normalize import Normalizer


def test_standard_normalization_gives_mean_0_and_deviation_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = images(50)
    x = torch.cat([b.x for b in evaluation_batches(train, 7, Normalizer.of("standard", train))]).double()
    assert torch.allclose(x.mean(dim=(0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(x.var(dim=(0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64), atol=1e-4)
    train = images(50)
    whole = Normalizer.of("standard", train)
    monkeypatch.setattr("steppe.data.dataset._CHUNK", 7)
    assert Normalizer.of("standard", images(50)) == whole
    assert np.allclose(whole.mean, (train.x.double().numpy() / 255).mean(axis=(0, 2, 3)), rtol=1e-12)
