"""Published corrupted images in folders: read as they lie there, refused where they are another data set's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steppe.diagnostics.corruptions.published_sets import is_tree, read_published, read_tree
from steppe.errors import InputError

CLASSES = ("n01440764", "n02102040", "n03000684")


def save(path: Path, value: int, size: tuple[int, int] = (12, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255 - value)).save(path, quality=100, subsampling=0)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two corruptions at two severities, four images of each of four classes: red says which image it is."""
    for home, start in (("fog/1", 0), ("fog/5", 100), ("noise/shot_noise/1", 50)):
        for c, label in enumerate((*CLASSES, "n09999999")):
            for i in range(4):
                save(tmp_path / home / label / f"ILSVRC2012_val_{i:08}.JPEG", start + 20 * c + 4 * i)
    (tmp_path / "fog/1/n01440764/README.txt").write_text("no image")
    return tmp_path


def red(images) -> list[int]:
    return images.x[:, 0].double().mean((1, 2)).round().int().tolist()


def test_a_tree_is_read_by_corruption_severity_and_class(tree):
    found = read_published(tree, "fog", 5, CLASSES, 12, 3, 100)
    assert found.x.shape == (12, 3, 12, 12)
    assert found.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    expected = [100 + 20 * c + 4 * i for c in range(3) for i in range(4)]
    np.testing.assert_allclose(red(found), expected, atol=2)


def test_a_few_are_evenly_spaced_and_resized_and_grey_if_the_network_sees_grey(tree):
    found = read_published(tree, "shot_noise", 1, CLASSES, 6, 1, 4)
    assert found.x.shape == (4, 1, 6, 6)
    assert found.y.tolist() == [0, 0, 1, 2]
    values = [50 + 20 * c + 4 * i for c, i in ((0, 0), (0, 3), (1, 2), (2, 1))]
    luminance = [0.299 * v + 0.114 * (255 - v) for v in values]
    np.testing.assert_allclose(red(found), luminance, atol=2)


def test_the_order_of_the_classes_is_the_network_s(tree):
    turned = read_tree(tree, "fog", 1, CLASSES[::-1], 12, 3, 3)
    np.testing.assert_allclose(red(turned), [40, 20, 0], atol=2)
    assert turned.y.tolist() == [0, 1, 2]


def test_arrays_are_no_tree(tree, tmp_path_factory):
    arrays = tmp_path_factory.mktemp("arrays")
    np.save(arrays / "labels.npy", np.zeros(5))
    assert is_tree(tree) and not is_tree(arrays) and not is_tree(tree / "nowhere")


@pytest.mark.parametrize(
    ("name", "severity", "classes", "message"),
    [
        ("snow", 1, CLASSES, "there is no .*snow/1; give the folder of ImageNet-C"),
        ("fog", 2, CLASSES, "there is no .*fog/2; give the folder of ImageNet-C"),
        ("fog", 0, CLASSES, "severity is 0; give 1 to 5"),
        ("fog", 1, ("tench",), "has no images of class 'tench'; give the corrupted images of the same data set"),
    ],
)
def test_what_is_not_there_is_named(tree, name, severity, classes, message):
    with pytest.raises(InputError, match=message) as caught:
        read_published(tree, name, severity, classes, 12, 3, 5)
    assert "\n" not in str(caught.value)


def test_a_torn_image_is_named(tree):
    (tree / "fog/1" / CLASSES[0] / "ILSVRC2012_val_00000000.JPEG").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"val_00000000.JPEG cannot be read \(.*\); unpack the archive again"):
        read_published(tree, "fog", 1, CLASSES, 12, 3, 5)
