"""RandAugment in batches has the distribution of torchvision's, one image at a time.

The other steps have references of their own in test_transforms.py and test_pil_ops.py. The same picture is
augmented many times by both. A Kolmogorov-Smirnov test compares the distributions of several statistics.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from support.foreign import importable

from steppe.data.transforms.auto_augment import randaugment
from steppe.data.transforms.basic import Sample

SIZE, COUNT = 24, 500

pytestmark = pytest.mark.vision


def picture() -> torch.Tensor:
    """Smooth colours with an edge (3, H, W) uint8, different at every pixel."""
    row, column = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    bands = torch.stack([3 * row + 7 * column, 200 - 2 * row - 3 * column, 9 * row - 2 * column + 40])
    bands[:, 5:12, 3:9] = torch.tensor([250, 20, 90])[:, None, None]
    return bands.clamp(0, 255).to(torch.uint8)


def statistics(x: np.ndarray) -> np.ndarray:
    """Return (7, N): two channels' means, deviation, a corner, an edge, the middle, left minus right."""
    x = x.astype(np.float64)
    red, blue = x[:, 0], x[:, 2]
    halves = red[:, :, : SIZE // 2].mean((1, 2)) - red[:, :, SIZE // 2 :].mean((1, 2))
    points = x[:, 0, 0, 0], x[:, 1, SIZE // 2, -1], x[:, 2, SIZE // 2, SIZE // 2]
    # rounded, because values that differ in the last digit would break ties
    return np.stack([red.mean((1, 2)), blue.mean((1, 2)), x.std((1, 2, 3)), *points, halves]).round(4)


def test_outputs_are_distributed_as_torchvision_s_with_the_same_settings_only() -> None:
    importable("torchvision")
    from torchvision.transforms import RandAugment

    x = picture().float().div(255).expand(COUNT, -1, -1, -1).contiguous()
    sample = Sample(x, torch.zeros(COUNT, 2))
    ours = statistics(randaugment(sample, sample, np.random.default_rng(0)).x.numpy())
    image = Image.fromarray(picture().permute(1, 2, 0).numpy())
    for operations, magnitude, equal in ((2, 9, True), (1, 9, False), (2, 20, False)):
        transform = RandAugment(operations, magnitude)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            outputs = np.stack([np.asarray(transform(image)) for _ in range(COUNT)]).transpose(0, 3, 1, 2)
        theirs = statistics(outputs / np.float32(255))
        p_values = [ks_2samp(a, b, method="asymp").pvalue for a, b in zip(ours, theirs, strict=True)]
        assert (min(p_values) > 1e-3) == equal, p_values
