"""A small decoder-only transformer for language modelling."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.errors import InputError

HEAD = 32  # width of an attention head
_STD = 0.02


class CausalAttention(nn.Module):
    """Multi-head self-attention of each token over itself and those before it: (B, T, width) to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended values."""
        q, k, v = self.qkv(x).unflatten(2, (3, -1, HEAD)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        projected: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return projected


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + dense(norm(x)), with 4 width hidden units and GELU: (B, T, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), CausalAttention(width)
        self.norm2 = nn.LayerNorm(width)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens after both."""
        x = x + self.attention(self.norm1(x))
        x = x + self.dense(self.norm2(x))
        return x


class GPT(nn.Module):
    """Token indices (B, T) to the logits (B, T, vocabulary) of the token after each; T is at most ``length``.

    The matrix of the token embedding is that of the output layer too, as one parameter (weight tying).
    """

    def __init__(self, vocabulary: int, length: int, width: int, depth: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(DecoderBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.ndim > 1:
                is_residual = name.endswith(("attention.out.weight", "dense.2.weight"))
                nn.init.normal_(p, std=_STD / math.sqrt(2 * depth) if is_residual else _STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


def gpt(vocabulary: int, length: int, width: int, depth: int) -> GPT:
    """Build a decoder-only transformer with learned positions, LayerNorm before each part, and tied embeddings.

    ``gpt-tiny`` is two blocks of width 64 (about 0.1 million parameters), ``gpt-1m`` five of width 128 (about one
    million), ``gpt-WxD`` D blocks of width W. Heads have 32 dimensions; there is no dropout. With vocabulary V and
    length T it has (V + T) W + D (12 W^2 + 13 W) + 2 W parameters.

    Matrices and embeddings start normal with deviation 0.02, those of the two layers of each block that are added
    to the residual stream with 0.02 / sqrt(2 D), biases at 0.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3 (the network
    and its initialisation); Press and Wolf, EACL 2017, arXiv:1608.05859 (tied embeddings).

    Raises InputError if ``width`` is not a multiple of 32.
    """
    if width % HEAD:
        raise InputError(
            f"gpt-{width}x{depth} has width {width}, which is no multiple of {HEAD}; "
            f"write gpt-{max(1, round(width / HEAD)) * HEAD}x{depth}"
        )
    return GPT(vocabulary, length, width, depth)
