"""The operations of RandAugment and AutoAugment on batches of 8-bit images, each image with its own value.

Every function takes images (B, C, H, W) uint8, with C = 1 or 3, and values (B,) float64, and returns new images on
the same device without synchronising. The result equals Pillow's, image by image and bit for bit, including its
truncations, because published results of these policies used Pillow.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Operation = Callable[[Tensor, Tensor], Tensor]
_Term = Tensor | float

_FIXED = 1 << 16  # Pillow's fixed-point source coordinates have steps of 1/65536
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_LUMA, _HALF = (19595, 38470, 7471), 1 << 15  # ITU-R 601-2 in 65536ths


def to_float(x: Tensor) -> Tensor:
    """Return uint8 images as new float32 images in [0, 1]; float32 images are returned as they are."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def to_uint8(x: Tensor) -> Tensor:
    """Return images in [0, 1] as uint8; uint8 images are returned as they are."""
    return x if x.dtype == torch.uint8 else (x * 255).round().to(torch.uint8)


def where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return ``torch.where(mask, a, b)`` for ``a`` and ``b`` of one type, faster on a CPU."""
    if b.device.type != "cpu":
        return torch.where(mask, a, b)
    # torch.where goes element by element on a CPU; bitwise operations are vectorised
    dtype = _BITS[b.element_size()]
    bits = b.view(dtype)
    return ((a.view(dtype) ^ bits) & mask.to(dtype).neg_()).bitwise_xor_(bits).view(b.dtype)


def _affine(
    x: Tensor, a: _Term = 1.0, b: _Term = 0.0, t: _Term = 0.0, d: _Term = 0.0, e: _Term = 1.0, u: _Term = 0.0
) -> Tensor:
    """Return images whose pixel (row r, column c) is the input's at x = a c' + b r' + t, y = d c' + e r' + u.

    c' = c + 1/2 and r' = r + 1/2; the pixel that contains the point is used, black outside. Terms are numbers or
    (B,) float64.
    """
    count, channels, h, w = x.shape
    rows, columns = (torch.arange(n, device=x.device, dtype=torch.int32) for n in (h, w))

    def on_device(v: _Term) -> Tensor:
        # not as_tensor, which copies a number to a GPU and waits for it
        return v if isinstance(v, Tensor) else torch.full((1,), v, dtype=torch.float64, device=x.device)

    def position(per_column: _Term, per_row: _Term, start: _Term, size: int) -> Tensor:
        """Return source pixels from 1 to ``size``; 0 and size + 1 are outside."""
        terms = (per_column, per_row, start + per_column * 0.5 + per_row * 0.5)
        by_column, by_row, first = ((on_device(v) * _FIXED + 0.5).floor().int().view(-1, 1, 1) for v in terms)
        return ((first + _FIXED + by_row * rows[:, None] + by_column * columns) >> 16).clamp_(0, size + 1)

    source = (position(d, e, u, h) * (w + 2) + position(a, b, t, w)).long()
    framed = F.pad(x, (1, 1, 1, 1)).flatten(2)
    return framed.gather(2, source.view(count, 1, -1).expand(-1, channels, -1)).view(x.shape)


def rotate(x: Tensor, value: Tensor) -> Tensor:
    """Rotate counter-clockwise about the centre by this many degrees."""
    h, w = x.shape[2:]
    angle = -torch.deg2rad(torch.remainder(value, 360.0))
    cos, sin = angle.cos(), angle.sin()
    t = cos * (-w / 2) + sin * (-h / 2) + w / 2
    u = -sin * (-w / 2) + cos * (-h / 2) + h / 2
    return _affine(x, cos, sin, t, -sin, cos, u)


def contrast(x: Tensor, value: Tensor) -> Tensor:
    """Scale the distance from the image's mean grey by 1 + value."""
    mean = (_grey(x).double().mean(dim=(1, 2, 3)) + 0.5).floor().to(torch.uint8)
    return _blended(mean[:, None, None, None].expand_as(x), x, value)


def sharpness(x: Tensor, value: Tensor) -> Tensor:
    """Scale the distance from the smoothed image by 1 + value; edge pixels are unchanged.

    The smoothing kernel is 5 in the centre and 1 for the eight neighbours, divided by 13.
    """
    channels, h, w = x.shape[1:]
    smooth = x.clone()
    if min(h, w) > 2:
        kernel = torch.ones(channels, 1, 3, 3, device=x.device)
        kernel[:, :, 1:2, 1:2].fill_(5)  # an assigned number would be copied from the host
        total = F.conv2d(x.float(), kernel, groups=channels)  # whole numbers, exact
        smooth[:, :, 1:-1, 1:-1] = (total / 13 + 0.5).floor().to(torch.uint8)
    return _blended(smooth, x, value)


def posterize(x: Tensor, value: Tensor) -> Tensor:
    """Keep this many bits of each pixel."""
    bits = (256 - 2 ** (8 - value.trunc())).to(torch.uint8)
    return x & bits[:, None, None, None]


def autocontrast(x: Tensor, value: Tensor) -> Tensor:
    """Stretch each channel from its darkest and lightest pixel to 0 and 255; ``value`` is not used."""
    low, high = (f(x, dim=(2, 3), keepdim=True).double() for f in (torch.amin, torch.amax))
    # full_like: torch computes a scalar divided by a tensor as a multiplication, which rounds twice
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)
    stretched = (x * scale + -low * scale).trunc().clamp(0, 255).to(torch.uint8)
    return where(high > low, stretched, x)


def equalize(x: Tensor, value: Tensor) -> Tensor:
    """Equalise the histogram of each channel; ``value`` is not used.

    With counts n_v, n_last the count of the largest value and s = (sum n - n_last) // 255, a pixel of value v
    becomes (s // 2 + sum_{u < v} n_u) // s; where s is 0 the channel is unchanged.
    """
    flat = x.flatten(2).long()
    counts = torch.zeros(*x.shape[:2], 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    last = counts.gather(2, flat.amax(dim=2, keepdim=True))
    step = (flat.shape[2] - last) // 255
    below = counts.cumsum(2) - counts
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    equal = table.gather(2, flat).to(torch.uint8).view(x.shape)
    return where((step > 0)[:, :, :, None], equal, x)


def _grey(x: Tensor) -> Tensor:
    """Return (B, 1, H, W) uint8."""
    if x.shape[1] == 1:
        return x
    r, g, b = (x[:, i : i + 1].int() * weight for i, weight in enumerate(_LUMA))
    return ((r + g + b + _HALF) >> 16).to(torch.uint8)


def _blended(start: Tensor, x: Tensor, value: Tensor) -> Tensor:
    """Return start + (1 + value) (x - start), clipped and truncated to uint8."""
    factor = (1 + value).float()[:, None, None, None]
    origin = start.float()
    return (origin + factor * (x.float() - origin)).clamp(0, 255).to(torch.uint8)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda x, value: x,
    # by this slope, about the upper left corner
    "shear-x": lambda x, value: _affine(x, b=value),
    "shear-y": lambda x, value: _affine(x, d=value),
    # by this many pixels to the right or down, truncated to whole ones
    "translate-x": lambda x, value: _affine(x, t=-value.trunc()),
    "translate-y": lambda x, value: _affine(x, u=-value.trunc()),
    "rotate": rotate,
    # the distance from black, from each pixel's grey, from the mean grey, from the smoothed image times 1 + value
    "brightness": lambda x, value: _blended(torch.zeros_like(x), x, value),
    "color": lambda x, value: _blended(_grey(x).expand_as(x), x, value),
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": lambda x, value: where(x < value[:, None, None, None], x, 255 - x),  # invert from value on
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": lambda x, value: 255 - x,
}
