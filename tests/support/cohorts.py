"""Networks and batches for methods of several networks: a small one with stages, and a transformer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import steppe


class Staged(nn.Module):
    """Three stages like a ResNet's, with a forward of its own; (B, 2, 8, 8) into 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.layer1 = self.stage(4, 4)
        self.layer2 = self.stage(4, 6)
        self.layer3 = self.stage(6, 8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def stage(self, a: int, b: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x)) * 0.5
        x = self.relu(self.layer3(x))  # registered before the split point, used after it too
        z: Tensor = self.fc(self.pool(x).flatten(1))
        return z


class Tokens(nn.Module):
    """A transformer with a class token and positions of its own; (B, 2, 8, 8) into 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True) for _ in range(4)
        )
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        z: Tensor = self.head(self.norm(x)[:, 0])
        return z


def maker(
    kind: Callable[[], nn.Module], seed: int = 0, dtype: torch.dtype = torch.float32
) -> Callable[[], nn.Module]:
    """Return a function that makes networks, each with different weights."""
    last = seed

    def make() -> nn.Module:
        nonlocal last
        last += 1
        torch.manual_seed(last)
        return kind().to(dtype)

    return make


def images(seed: int = 0, count: int = 12, dtype: torch.dtype = torch.float32) -> steppe.Batch:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, 8, 8, generator=g, dtype=dtype)
    return steppe.Batch(x, torch.randint(0, 5, (count,), generator=g))


def views(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> steppe.Batch:
    """Return a batch with ``count`` views of each sample."""
    first = images(seed, dtype=dtype)
    return first.with_extra(**{f"view {i}": images(seed + 100 * i, dtype=dtype).x for i in range(2, count + 1)})
