"""A user's data in its forms: the same samples, whatever they come in."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

from steppe.config import Data
from steppe.data import splits
from steppe.data.dataset import Fetched, Images, Tensors
from steppe.data.samples import SampleLoader, sample_batches
from steppe.data.sources.formats.user_data import user_source
from steppe.errors import InputError

X = np.arange(60, dtype=np.float32).reshape(20, 3)
Y = np.arange(20) % 2


class Pairs(Dataset):
    def __init__(self, noise=0.0):
        self.noise = noise

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return torch.from_numpy(X[i]) + self.noise * torch.rand(3), int(Y[i])


def content(source):
    rows = {tuple(x.tolist()): int(y) for s in (source.train, source.test) for x, y in zip(s.x, s.y, strict=True)}
    return sorted(rows.items())


EXPECTED = sorted((tuple(x.tolist()), int(y)) for x, y in zip(X, Y, strict=True))
FORMS = {
    "arrays": lambda: (X, Y),
    "tensors": lambda: (torch.from_numpy(X), torch.from_numpy(Y)),
    "function": lambda: lambda: (X, Y),
    "data set": Pairs,
    "tensor data set": lambda: TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
    "loader": lambda: DataLoader(Pairs(), batch_size=7, shuffle=True),
    "batches": lambda: [(torch.from_numpy(X[i : i + 7]), torch.from_numpy(Y[i : i + 7])) for i in (0, 7, 14)],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_samples(form):
    source = user_source(FORMS[form]())
    assert content(source) == EXPECTED
    assert (source.task, source.classes, source.outputs) == ("classification", ("0", "1"), 2)
    assert len(source.test) == 4 and "fixed fifth" in source.note
    data = splits.apply("data", source, Data(val=3))
    assert (len(data.train), len(data.val), len(data.test)) == (13, 3, 4)


def test_several_parts_stay_apart():
    parts = {"train": (X[:12], Y[:12]), "validation": (X[12:16], Y[12:16]), "test": (X[16:], Y[16:])}
    for value in (parts, tuple(parts.values())):
        data = splits.apply("data", user_source(value), Data())
        assert [len(data.train), len(data.val), len(data.test)] == [12, 4, 4] and not data.note
    for empty in ((X[:0], Y[:0]), {"train": (X, Y), "val": (X[:0], Y[:0])}, TensorDataset(torch.zeros(0, 3))):
        with pytest.raises(InputError, match="part of the data has no sample"):
            user_source(empty)
    with pytest.raises(InputError, match="no 'train'"):
        user_source({"test": (X, Y)})


@pytest.mark.parametrize(
    ("x", "y", "task", "outputs"),
    [
        (X, Y.astype(float) + 0.5, "regression", 1),
        (X, np.stack([Y, 1 - Y, Y], 1), "multi-label", 3),
        (X, np.where(Y, "cat", "dog"), "classification", 2),
        (X, 2 * Y - 1, "classification", 2),
        (np.zeros((20, 1, 4, 4), np.float32), np.ones((20, 4, 4), int), "segmentation", 2),
        (np.tile(np.arange(6), (20, 1)), np.tile(np.arange(1, 7), (20, 1)), "language modelling", 7),
        ({"input_ids": np.tile(np.arange(6), (20, 1))}, np.full((20, 6), -100), "token classification", 2),
    ],
    ids=["numbers", "labels", "names", "signs", "masks", "text", "tokens"],
)
def test_the_targets_say_the_task(x, y, task, outputs):
    source = user_source((x, y))
    assert (source.task, source.outputs) == (task, outputs)
    if task == "classification":
        assert set(source.train.y.tolist()) == {0, 1}
    if isinstance(y[0], str):
        assert source.classes == ("cat", "dog")


def test_bytes_of_pixels_are_images_and_texts_are_refused():
    pixels = np.zeros((20, 8, 8, 3), np.uint8).transpose(0, 3, 1, 2)
    assert isinstance(user_source((pixels, Y)).train, Images)
    with pytest.raises(InputError, match="encode texts"):
        user_source((np.array(["a", "b"]), Y[:2]))
    with pytest.raises(InputError, match="samples are x 20, y 19"):
        user_source((X, Y[:19]))


def test_rows_of_unequal_length_are_padded():
    datasets = pytest.importorskip("datasets")
    rows = {"input_ids": [[1, 2, 3], [4], [5, 6]], "attention_mask": [[1, 1, 1], [1], [1, 1]]}
    source = user_source({"train": datasets.Dataset.from_dict({**rows, "labels": [[0, 1, 0], [1], [-100, 0]]})})
    train, test = source.train, source.test
    samples = {
        tuple(x.tolist()): y.tolist() for s in (train, test) for x, y in zip(s.x["input_ids"], s.y, strict=True)
    }
    assert samples == {(1, 2, 3): [0, 1, 0], (4, 0, 0): [1, -100, -100], (5, 6, 0): [-100, 0, -100]}


def test_a_data_set_that_draws_is_fetched_and_an_epoch_is_the_same_whenever_it_is_made():
    source = user_source(Pairs(noise=0.1))
    assert isinstance(source.train, Fetched)
    loader = SampleLoader(source.train, batch=5, seed=3)
    before = torch.random.get_rng_state()
    first, again, other = (list(loader.epoch(n)) for n in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].x, other[0].x)
    assert torch.equal(first[1].x, next(loader.epoch(1, first=1, stride=2)).x)
    rows = torch.cat([b.index for b in first])
    assert len(set(rows.tolist())) == len(rows) == 15  # of 16 training samples; a last batch of one is left out
    assert [len(b) for b in sample_batches(source.train, 6)] == [6, 6, 4]


def test_processes_share_a_batch_and_a_sampler_orders_an_epoch():
    samples = Tensors(torch.arange(10.0)[:, None], torch.arange(10))
    whole = next(SampleLoader(samples, batch=5, seed=0).epoch(1))
    parts = [next(SampleLoader(samples, batch=5, seed=0, rank=r, size=2).epoch(1)) for r in (0, 1)]
    assert torch.equal(torch.cat([p.y for p in parts]), whole.y)
    sampler = WeightedRandomSampler([0.0] * 10 + [1.0] * 10, 20)
    loader = DataLoader(Pairs(), batch_size=5, sampler=sampler)
    source = user_source({"train": loader, "val": Pairs(), "test": Pairs()})
    train = splits.apply("data", source, Data()).train
    batches = list(SampleLoader(train, batch=5, seed=0).epoch(1))
    assert min(int(b.index.min()) for b in batches) >= 10
    with pytest.raises(InputError, match="give validation and test"):
        user_source(loader)


class Stream(torch.utils.data.IterableDataset):
    def __len__(self):
        return 7

    def __iter__(self):
        return ((torch.full((3,), float(i)), i % 2) for i in range(7))


def test_a_loader_of_a_stream_is_read_and_a_stream_of_single_samples_names_the_loader():
    loader = torch.utils.data.DataLoader(Stream(), batch_size=2)
    data = user_source({"train": loader, "test": loader})
    assert data.train.x[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert data.train.y.tolist() == [0, 1, 0, 1, 0, 1, 0]
    with pytest.raises(InputError, match=r"of single samples .*DataLoader\(data, batch_size=32\)"):
        user_source(Stream())
