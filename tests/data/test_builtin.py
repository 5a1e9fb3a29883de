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


def test_the_share_of_test_digits_is_of_every_class() -> None:
    plain, same, large = (data.load(f"digits{own}", Data()) for own in ("", ":test=0.2", ":test=0.75"))
    assert torch.equal(plain.test.x, same.test.x) and torch.equal(plain.train.x, same.train.x)
    assert len(large.test) == round(0.75 * 1797) and len(large.train) + len(large.val) == 1797 - len(large.test)
    every = torch.bincount(torch.cat([part.y for part in (large.train, large.val, large.test)]))
    assert (torch.bincount(large.test.y) - 0.75 * every).abs().max() < 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "write folder:PATH"),
        ("folder:nowhere", "there is no nowhere"),
        ("digitz", "unknown data set 'digitz'; did you mean 'digits'"),
        ("digits:here", "digits has no files"),
        ("digits:test=1.5", "test is '1.5'; give the share of the digits"),
        ("digits:test=most", "test is 'most'; give the share of the digits"),
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


@pytest.mark.parametrize(
    ("name", "sizes", "task", "outputs", "features"),
    [
        ("diabetes", (319, 35, 88), "regression", 1, 10),
        ("breast-cancer", (409, 46, 114), "classification", 2, 30),
        ("wine", (128, 14, 36), "classification", 3, 13),
    ],
)
def test_tables_are_scikit_learn_s(
    name: str, sizes: tuple[int, ...], task: str, outputs: int, features: int
) -> None:
    from sklearn import datasets

    loaded = data.load(name, Data())
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == sizes
    assert (loaded.task, loaded.outputs, loaded.inputs) == (task, outputs, {"features": features})
    bunch = getattr(datasets, f"load_{name.replace('-', '_')}")(
        **({"scaled": False} if name == "diabetes" else {})
    )
    inputs = loaded.preparation["inputs"]
    assert [c["column"] for c in inputs] == list(bunch.feature_names)
    mean, std = (torch.tensor([c[k] for c in inputs], dtype=torch.float64) for k in ("mean", "std"))
    assert torch.allclose(loaded.train.x.mean(0), torch.zeros(features), atol=1e-5)
    assert torch.allclose(loaded.train.x.std(0, correction=0), torch.ones(features), atol=1e-5)
    # every row is scikit-learn's, with its target
    for part in (loaded.train, loaded.val, loaded.test):
        raw = part.x.double() * std + mean
        distance = torch.cdist(raw / std, torch.from_numpy(bunch.data) / std)
        rows = distance.argmin(1)
        assert float(distance.min(1).values.max()) < 1e-3
        expected = torch.from_numpy(bunch.target)[rows]
        assert torch.allclose(loaded.in_unit(part.y).reshape(-1).double(), expected.double(), atol=1e-3)
