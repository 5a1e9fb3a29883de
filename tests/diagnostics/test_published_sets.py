"""Published corrupted images are read as they are, and refused if they are another data set's."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steppe.diagnostics.corruptions.published_sets import read_arrays, read_published
from steppe.errors import InputError

CLASSES = ("n01440764", "n02102040", "n03000684")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three cells with four images of each of four classes; red identifies the image."""
    for cell, start in (("fog/1", 0), ("fog/5", 100), ("noise/shot_noise/1", 50)):
        for c, label in enumerate((*CLASSES, "n09999999")):
            (tmp_path / cell / label).mkdir(parents=True)
            for i in range(4):
                value = start + 20 * c + 4 * i
                image = Image.new("RGB", (12, 12), (value, 0, 255 - value))
                path = tmp_path / cell / label / f"ILSVRC2012_val_{i:08}.JPEG"
                image.save(path, quality=100, subsampling=0)
    (tmp_path / "fog/1/n01440764/README.txt").write_text("no image")
    return tmp_path


def red(images) -> list[int]:
    return images.x[:, 0].double().mean((1, 2)).round().int().tolist()


def test_a_tree_is_read_by_corruption_severity_and_class_in_the_network_s_order(tree):
    images = read_published(tree, "fog", 5, CLASSES, 12, 3, 100)
    assert images.x.shape == (12, 3, 12, 12)
    assert images.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    np.testing.assert_allclose(red(images), [100 + 20 * c + 4 * i for c in range(3) for i in range(4)], atol=2)
    images = read_published(tree, "fog", 1, CLASSES[::-1], 12, 3, 3)
    np.testing.assert_allclose(red(images), [40, 20, 0], atol=2)
    assert images.y.tolist() == [0, 1, 2]


def test_a_few_images_are_evenly_spaced_resized_and_grey_for_a_grey_network(tree):
    images = read_published(tree, "shot_noise", 1, CLASSES, 6, 1, 4)
    assert images.x.shape == (4, 1, 6, 6)
    assert images.y.tolist() == [0, 0, 1, 2]
    values = [50 + 20 * c + 4 * i for c, i in ((0, 0), (0, 3), (1, 2), (2, 1))]
    np.testing.assert_allclose(red(images), [0.299 * v + 0.114 * (255 - v) for v in values], atol=2)


@pytest.fixture
def arrays(tmp_path: Path) -> np.ndarray:
    x = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "fog.npy", x)
    np.save(tmp_path / "labels.npy", np.tile(np.arange(10), 5))
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY\x01\x00")
    return x


def test_arrays_are_read_by_severity(arrays, tmp_path):
    images = read_arrays(tmp_path, "fog", 3)
    np.testing.assert_array_equal(np.moveaxis(images.x.numpy(), 1, -1), arrays[20:30])
    assert images.y.tolist() == list(range(10))
    few = read_published(tmp_path, "fog", 2, "abcdefghij", 32, 3, 5)
    assert few.y.tolist() == [0, 2, 4, 6, 8]
    np.testing.assert_array_equal(np.moveaxis(few.x.numpy(), 1, -1), arrays[10:20:2])


@pytest.mark.parametrize(
    ("name", "severity", "classes", "message"),
    [
        ("fog", 0, "abcdefghij", "severity is 0; give 1 to 5"),
        ("snow", 1, "abcdefghij", "there is no .*snow.npy; give the folder"),
        ("labels", 1, "abcdefghij", "give the published files"),
        ("torn", 1, "abcdefghij", "cannot read"),
        ("fog", 1, "abc", "have 3 channels and class 8; the data set has 3 and 3 classes"),
    ],
)
def test_unusable_arrays_are_one_line(arrays, tmp_path, name, severity, classes, message):
    with pytest.raises(InputError, match=message):
        read_published(tmp_path, name, severity, classes, 32, 3, 5)


@pytest.mark.parametrize(
    ("name", "severity", "classes", "message"),
    [
        ("snow", 1, CLASSES, "there is no .*snow/1; give the folder of ImageNet-C"),
        ("fog", 2, CLASSES, "there is no .*fog/2; give the folder of ImageNet-C"),
        ("fog", 1, ("tench",), "has no images of class 'tench'; give the corrupted images of the same data set"),
        ("fog", 5, CLASSES, r"val_00000000.JPEG cannot be read \(.*\); unpack the archive again"),
    ],
)
def test_unusable_trees_are_one_line(tree, name, severity, classes, message):
    (tree / "fog/5" / CLASSES[0] / "ILSVRC2012_val_00000000.JPEG").write_bytes(b"torn")
    with pytest.raises(InputError, match=message) as error:
        read_published(tree, name, severity, classes, 12, 3, 5)
    assert "\n" not in str(error.value)
