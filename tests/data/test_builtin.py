"""Data sets without files, and the errors of data set names."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from steppe import InputError, data
from steppe.config import Data


def test_digits_are_the_real_ones_upscaled() -> None:
    from sklearn.datasets import load_digits

    images = data.load("digits", Data())
    assert (images.channels, images.size, len(images.classes)) == (1, 24, 10)
    assert len(images.train) + len(images.val) + len(images.test) == 1797
    small = data.load("digits", Data(size=8))
    raw = torch.from_numpy((load_digits().images * 255 / 16).round().astype(np.uint8))
    everything = torch.cat([small.train.x, small.val.x, small.test.x])[:, 0]
    assert torch.equal(everything.long().sum(dim=0), raw.long().sum(dim=0))


def test_digits_are_read_through_scikit_learn_if_their_file_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = data.load("digits", Data()).train.x

    with monkeypatch.context() as patch:
        patch.setattr("steppe.data.sources.builtin.find_spec", lambda _: SimpleNamespace(origin="/nowhere/a.py"))
        assert torch.equal(data.load("digits", Data()).train.x, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "write folder:PATH"),
        ("folder:nowhere", "there is no nowhere"),
        ("digitz", "unknown data set 'digitz'; did you mean 'digits'"),
        ("digits:here", "digits has no files"),
        ("cifar10:nowhere", "cifar10 is not in nowhere; give cifar10:PATH"),
    ],
)
def test_unknown_names_and_missing_paths_are_one_line(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        data.load(name, Data())


def test_synthetic_images_are_the_same_noise_every_time() -> None:
    a, b = (data.load("synthetic", Data(train=50, test=20)) for _ in range(2))
    assert a.train.x.shape == (50, 3, 32, 32)
    assert torch.equal(a.train.x, b.train.x)
    assert "accuracies mean nothing" in a.note
