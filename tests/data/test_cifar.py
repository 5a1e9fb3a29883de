"""CIFAR-10 and CIFAR-100 as published, damaged, and malicious."""

import os
import pickle
import sys
import tarfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steppe import InputError, data
from steppe.config import Data


def cifar_folder(root: Path, labels: int = 10) -> Path:
    """Files as published: pickles of protocol 2 with byte keys."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        content = {
            b"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8),
            b"labels": [int(v) for v in np.arange(20) % labels],
        }
        # the published files were written when numpy's core had no underscore
        packed = pickle.dumps(content, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        (root / name).write_bytes(packed)
    return root


def test_cifar10_is_read_as_published(tmp_path: Path) -> None:
    root = cifar_folder(tmp_path / "cifar-10-batches-py")
    images = data.load(f"cifar10:{root}", Data(val=10))
    assert (len(images.train), len(images.val), len(images.test)) == (90, 10, 20)
    first = pickle.loads((root / "test_batch").read_bytes(), encoding="bytes")
    assert torch.equal(images.test.x, torch.from_numpy(first[b"data"].reshape(-1, 3, 32, 32)))
    above = data.load(f"cifar10:{tmp_path}", Data(val=10))
    assert torch.equal(above.test.x, images.test.x)
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as tar:
        tar.add(root, arcname=root.name)
    packed = data.load(f"cifar10:{tmp_path / 'cifar.tar.gz'}", Data(val=10, size=16))
    assert packed.test.x.shape == (20, 3, 16, 16)


def test_binary_files_are_read(tmp_path: Path) -> None:
    root, binary = cifar_folder(tmp_path / "python"), tmp_path / "binary"
    binary.mkdir()
    for file in root.iterdir():
        content = pickle.loads(file.read_bytes(), encoding="bytes")
        labels = np.array(content[b"labels"], np.uint8)[:, None]
        (binary / f"{file.name}.bin").write_bytes(np.hstack([labels, content[b"data"]]).tobytes())
    a, b = (data.load(f"cifar10:{r}", Data(val=10)) for r in (root, binary))
    assert torch.equal(a.train.x, b.train.x)
    assert torch.equal(a.test.y, b.test.y)
    for name, count in (("train", 200), ("test", 100)):
        rows = np.zeros((count, 3074), np.uint8)
        rows[:, 1] = np.arange(count) % 100
        (tmp_path / f"{name}.bin").write_bytes(rows.tobytes())
    images = data.load(f"cifar100:{tmp_path}", Data(val=100))
    assert len(images.classes) == 100
    assert torch.equal(images.test.y, torch.arange(100))


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch attacked",)


def test_a_pickle_with_code_is_refused_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = cifar_folder(tmp_path / "cifar")
    (root / "data_batch_1").write_bytes(pickle.dumps({b"data": Attack(), b"labels": []}, protocol=2))
    with pytest.raises(InputError, match=r"data_batch_1 wants to run .*system.*; refused"):
        data.load(f"cifar10:{root}", Data())
    assert not (tmp_path / "attacked").exists()


def test_labels_out_of_range_and_damaged_files_are_named(tmp_path: Path) -> None:
    root = cifar_folder(tmp_path / "cifar", labels=11)
    with pytest.raises(InputError, match=r"data_batch_1 has label 10; labels go from 0 to 9"):
        data.load(f"cifar10:{root}", Data())
    (root / "data_batch_1").write_bytes(b"\x80\x02nonsense")
    with pytest.raises(InputError, match=r"data_batch_1 is damaged"):
        data.load(f"cifar10:{root}", Data())
    # uint8 would wrap around
    (root / "data_batch_1").write_bytes(pickle.dumps({b"data": np.full((20, 3072), 300), b"labels": [0] * 20}))
    with pytest.raises(InputError, match=r"data_batch_1 has no 32x32 colour images"):
        data.load(f"cifar10:{root}", Data())


def test_the_data_folder_is_searched_without_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = cifar_folder(tmp_path / "files")
    home = tmp_path / "home"
    home.mkdir()
    with tarfile.open(home / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(root, arcname="cifar-10-batches-py")
    monkeypatch.setenv("STEPPE_DATA", str(home))
    assert len(data.load("cifar10", Data(val=10)).test) == 20
    monkeypatch.setenv("STEPPE_DATA", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"cifar10 is not in .*none; give cifar10:PATH .* or cifar10:download"):
        data.load("cifar10", Data())


def test_a_download_without_torchvision_or_network_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPPE_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match=r"pip install 'steppe\[vision\]'"):
        data.load("cifar10:download", Data())

    def fetch(root: str, download: bool) -> None:
        raise OSError("no network")

    fake = types.ModuleType("torchvision")
    monkeypatch.setattr(fake, "datasets", types.SimpleNamespace(CIFAR10=fetch), raising=False)
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    with pytest.raises(InputError, match=r"cannot download cifar10 .*no network.* give cifar10:PATH"):
        data.load("cifar10:download", Data())
