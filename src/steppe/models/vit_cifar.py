"""A vision transformer that is small enough to be trained from scratch on small images."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.errors import InputError
from steppe.models.keras_layers import check_images

MIN_SIZE = 8

PATCH, WIDTH, DEPTH, HEADS, HEAD, HIDDEN, DROP = 4, 512, 6, 8, 64, 512, 0.1


class Tokens(nn.Module):
    """Images (B, C, S, S) to a class token, then a token per patch, each with its position: (B, 1 + N, width)."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, WIDTH, PATCH, PATCH)
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, 1 + (size // PATCH) ** 2, WIDTH))
        self.drop = nn.Dropout(DROP)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(x), -1, -1), patches], dim=1)
        placed: Tensor = self.drop(tokens + self.positions)
        return placed


class Attention(nn.Module):
    """Multi-head self-attention over all tokens (B, T, width), with LayerNorm before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * HEAD, bias=False)
        self.out = nn.Linear(HEADS * HEAD, WIDTH)
        self.drop = nn.Dropout(DROP)

    def forward(self, x: Tensor) -> Tensor:
        """Return what attention adds to the tokens."""
        qkv = self.qkv(self.norm(x)).unflatten(2, (3, HEADS, HEAD))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v)
        added: Tensor = self.drop(self.out(attended.transpose(1, 2).flatten(2)))
        return added


class EncoderBlock(nn.Module):
    """Attention, then two dense layers with GELU between them, each added to its input (B, T, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.dense = nn.Sequential(
            *(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Dropout(DROP)),
            *(nn.Linear(HIDDEN, WIDTH), nn.Dropout(DROP)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens after both."""
        x = x + self.attention(x)
        x = x + self.dense(x)
        return x


class FirstToken(nn.Module):
    """The class token: (B, T, width) to (B, width)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the first token."""
        return x[:, 0]


def vit_cifar(classes: int, channels: int, size: int) -> nn.Sequential:
    """Build a vision transformer for small images: patches of 4x4, width 512, six blocks of eight heads.

    The parts are one flat ``nn.Sequential``: the tokens; the blocks, which normalise before attention (head
    dimension 64, no biases for queries, keys and values) and before their dense layers (512 units, GELU); the
    class token, LayerNorm and the classifier. Dropout 0.1 follows the tokens, attention's projection and each
    dense layer. It maps images (B, channels, size, size) to logits (B, classes).

    For 3x32x32 images it has 9,523,722 parameters with 10 classes. Class token and positions start as unit
    normals, everything else as PyTorch does.

    Source: Dosovitskiy et al., ICLR 2021, arXiv:2010.11929, with patch size, heads and dropout of the RWP paper
    (arXiv:2211.13489v1, appendix D), and the rest, which it does not state, of the same authors' follow-up
    (nblt/mARWP @ 580bef3, utils.py).

    Raises InputError if ``size`` is below 8 or no multiple of 4, ``classes`` below 1, or ``channels`` not 1 or 3.
    """
    check_images("vit-cifar", classes, channels, size, MIN_SIZE)
    if size % PATCH:
        near = size // PATCH * PATCH
        raise InputError(
            f"vit-cifar cuts images into patches of {PATCH}x{PATCH}, these are {size}x{size}; "
            f"set data.size to {near} or {near + PATCH}"
        )
    parts: OrderedDict[str, nn.Module] = OrderedDict(tokens=Tokens(channels, size))
    for i in range(1, DEPTH + 1):
        parts[f"block{i}"] = EncoderBlock()
    parts |= {"first": FirstToken(), "norm": nn.LayerNorm(WIDTH), "head": nn.Linear(WIDTH, classes)}
    return nn.Sequential(parts)
