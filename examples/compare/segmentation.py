"""A small U-Net on made-up masks: bright discs on noise, by mean intersection over union."""

import os

import torch
from torch import nn

import steppe

SEEDS, EPOCHS = int(os.environ.get("SEEDS", "3")), int(os.environ.get("EPOCHS", "10"))


class SmallUNet(nn.Module):
    def __init__(self, classes=3, width=8):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
        self.inner = nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)
        )
        self.up = nn.Conv2d(3 * width, classes, 3, padding=1)

    def forward(self, x):
        x = self.down(x)
        return self.up(torch.cat([x, self.inner(x)], 1))


def discs(count=160, size=24):
    """Return images (N, 1, S, S) and the class of each pixel (N, S, S): none, dark or bright disc."""
    draw = torch.Generator().manual_seed(0)
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    y = torch.zeros(count, size, size, dtype=torch.long)
    for mask in y:
        for kind in (1, 2):
            a, b, radius = (torch.rand(3, generator=draw) * torch.tensor([size, size, size / 4])).tolist()
            mask[(row - a) ** 2 + (column - b) ** 2 < (radius + 3) ** 2] = kind
    shade = torch.tensor([0.0, -1.0, 1.0])[y]
    return (shade + 0.7 * torch.randn(y.shape, generator=draw))[:, None], y


def main():
    result = steppe.compare(
        lambda seed: SmallUNet(),
        discs(),
        ["plain", "sam"],
        optimizer="adamw",
        lr=0.01,
        seeds=SEEDS,
        epochs=EPOCHS,
        batch=16,
    )
    print(result)
    return result


if __name__ == "__main__":
    main()
