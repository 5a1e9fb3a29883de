"""Images that are mapped from a file behave as those in memory."""

import os
import pickle
from pathlib import Path

import numpy as np
import torch
from support.photos import class_folders, load

from steppe.data.dataset import Images


def test_mapped_images_are_selected_as_copied_ones(tmp_path: Path, mapped_cache) -> None:
    mapped = load(class_folders(tmp_path / "photos")).train
    copied = Images(mapped.x, mapped.y)
    index = torch.tensor([5, 0, 3, 3])
    for view, whole in ((mapped, copied), (mapped.take(index.numpy()), copied.take(index.numpy()))):
        assert view.file is not None and whole.file is None
        assert torch.equal(view.x, whole.x) and torch.equal(view.y, whole.y)
        assert torch.equal(view.at(torch.tensor([2, 1])), whole.x[[2, 1]])
        assert torch.equal(view.at(slice(1, 3)), whole.x[1:3])
        part, whole_part = view.part(slice(1, 4)), whole.part(slice(1, 4))
        assert len(part) == 3 and torch.equal(part.x, whole_part.x) and torch.equal(part.y, whole_part.y)
        assert torch.equal(part.take(np.array([2])).x, whole.x[3:4])


def test_parts_share_the_mapped_file_and_outlive_it(tmp_path: Path, mapped_cache) -> None:
    root = class_folders(tmp_path / "photos")
    for images in (load(root), load(root)):  # decoded first, then from the cache
        file = next(Path(os.environ["STEPPE_CACHE"]).rglob("train_x.npy"))
        assert images.train.file == images.val.file == file
        assert images.train.pixels.data_ptr() == images.val.pixels.data_ptr()
        assert any(line.endswith(str(file)) for line in Path("/proc/self/maps").read_text().splitlines())
    before = images.train.x
    np.save(file.with_suffix(".new.npy"), np.zeros_like(np.load(file)))
    os.replace(file.with_suffix(".new.npy"), file)
    assert torch.equal(images.train.x, before) and bool(before.any())
    file.unlink()
    assert torch.equal(images.train.x, before)


def test_mapped_images_are_pickled_as_their_file_name(tmp_path: Path, mapped_cache) -> None:
    images = load(class_folders(tmp_path / "photos", per_class=200)).train
    content = pickle.dumps(images)
    assert len(content) < images.x.numel() / 10
    again = pickle.loads(content)
    assert torch.equal(again.x, images.x) and torch.equal(again.y, images.y)
