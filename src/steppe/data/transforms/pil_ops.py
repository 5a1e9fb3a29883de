"""Operations on batches of 8-bit images, each image with its own value: those of RandAugment and AutoAugment.

Every function takes images (B, C, H, W) of type uint8, C being 1 or 3, and a tensor (B,) of float64 values, and
returns new images; on any device, without waiting for it. Bit for bit they are what Pillow gives image by image,
which is what published results of these policies were made with, down to where it cuts digits off.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Operation = Callable[[Tensor, Tensor], Tensor]

_FIXED = 1 << 16  # Pillow walks over source pixels in steps of 1/65536, in 32 bits
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_LUMA, _HALF = (19595, 38470, 7471), 1 << 15  # ITU-R 601-2 in 65536ths


def unit(x: Tensor) -> Tensor:
    """Return uint8 images as new float32 values in [0, 1]; those that are such values, themselves."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def eight_bits(x: Tensor) -> Tensor:
    """Return images in [0, 1] as uint8; those that are, themselves."""
    return x if x.dtype == torch.uint8 else (x * 255).round().to(torch.uint8)


def picked(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return ``a`` where ``mask`` is set and ``b`` elsewhere, as ``torch.where`` does; of one type both."""
    if b.device.type != "cpu":
        return torch.where(mask, a, b)
    # on a processor where() goes from element to element, and bits are chosen in whole vectors
    kind = _BITS[b.element_size()]
    old = b.view(kind)
    return ((a.view(kind) ^ old) & mask.to(kind).neg_()).bitwise_xor_(old).view(b.dtype)


def _affine(x: Tensor, matrix: tuple[Tensor, ...]) -> Tensor:
    """Return images whose pixel (row r, column c) is that at (a c' + b r' + t, d c' + e r' + u) of the old ones.

    With c' = c + 1/2 and r' = r + 1/2, the pixel that the point lies in, black outside. ``matrix`` is
    (a, b, t, d, e, u), each (B,) float64.
    """
    a, b, t, d, e, u = matrix
    count, channels, h, w = x.shape
    rows, columns = (torch.arange(n, device=x.device, dtype=torch.int32) for n in (h, w))

    def place(along: Tensor, down: Tensor, start: Tensor, size: int) -> Tensor:
        """Return where to look, 1 to ``size``, with 0 and size + 1 for what is outside."""
        steps = [(v * _FIXED + 0.5).floor().int()[:, None, None] for v in (along, down, start)]
        first = steps[2] + _FIXED + steps[1] * rows[:, None]
        return ((first + steps[0] * columns) >> 16).clamp_(0, size + 1)

    row = place(d, e, u + d * 0.5 + e * 0.5, h)
    source = row.mul_(w + 2).add_(place(a, b, t + a * 0.5 + b * 0.5, w)).long()
    framed = F.pad(x, (1, 1, 1, 1)).flatten(2)
    return framed.gather(2, source.view(count, 1, -1).expand(-1, channels, -1)).view(x.shape)


def shear_x(x: Tensor, value: Tensor) -> Tensor:
    """Shear along the rows by this slope, about the upper left corner."""
    zero, one = torch.zeros_like(value), torch.ones_like(value)
    return _affine(x, (one, value, zero, zero, one, zero))


def shear_y(x: Tensor, value: Tensor) -> Tensor:
    """Shear along the columns by this slope, about the upper left corner."""
    zero, one = torch.zeros_like(value), torch.ones_like(value)
    return _affine(x, (one, zero, zero, value, one, zero))


def translate_x(x: Tensor, value: Tensor) -> Tensor:
    """Move to the right by so many whole pixels, digits cut off."""
    zero, one = torch.zeros_like(value), torch.ones_like(value)
    return _affine(x, (one, zero, -value.trunc(), zero, one, zero))


def translate_y(x: Tensor, value: Tensor) -> Tensor:
    """Move down by so many whole pixels, digits cut off."""
    zero, one = torch.zeros_like(value), torch.ones_like(value)
    return _affine(x, (one, zero, zero, zero, one, -value.trunc()))


def rotate(x: Tensor, value: Tensor) -> Tensor:
    """Turn counter-clockwise about the middle by so many degrees."""
    h, w = x.shape[2:]
    angle = -torch.deg2rad(torch.remainder(value, 360.0))
    cos, sin = angle.cos(), angle.sin()
    t = cos * (-w / 2) + sin * (-h / 2) + w / 2
    u = -sin * (-w / 2) + cos * (-h / 2) + h / 2
    return _affine(x, (cos, sin, t, -sin, cos, u))


def brightness(x: Tensor, value: Tensor) -> Tensor:
    """Go from black through the image and beyond, 1 + value of the way."""
    return _blended(torch.zeros_like(x), x, value)


def color(x: Tensor, value: Tensor) -> Tensor:
    """Go from each pixel's grey through the image and beyond, 1 + value of the way."""
    return _blended(_grey(x).expand_as(x), x, value)


def contrast(x: Tensor, value: Tensor) -> Tensor:
    """Go from the image's mean grey through the image and beyond, 1 + value of the way."""
    mean = (_grey(x).double().mean(dim=(1, 2, 3)) + 0.5).floor().to(torch.uint8)
    return _blended(mean[:, None, None, None].expand_as(x), x, value)


def sharpness(x: Tensor, value: Tensor) -> Tensor:
    """Go from the smoothed image through the image and beyond, 1 + value of the way; edge pixels stay.

    Smoothed: each pixel five times and its eight neighbours once, divided by 13.
    """
    channels, h, w = x.shape[1:]
    smooth = x.clone()
    if min(h, w) > 2:
        kernel = torch.ones(channels, 1, 3, 3, device=x.device)
        kernel[:, :, 1, 1] = 5
        total = F.conv2d(x.float(), kernel, groups=channels)  # whole numbers, exact
        smooth[:, :, 1:-1, 1:-1] = (total / 13 + 0.5).floor().to(torch.uint8)
    return _blended(smooth, x, value)


def posterize(x: Tensor, value: Tensor) -> Tensor:
    """Keep so many bits of each pixel."""
    kept = (256 - 2 ** (8 - value.trunc())).to(torch.uint8)
    return x & kept[:, None, None, None]


def solarize(x: Tensor, value: Tensor) -> Tensor:
    """Invert pixels from this value on."""
    return picked(x < value[:, None, None, None], x, 255 - x)


def invert(x: Tensor, value: Tensor) -> Tensor:
    """Invert pixels; ``value`` is not used."""
    return 255 - x


def autocontrast(x: Tensor, value: Tensor) -> Tensor:
    """Stretch each channel from its darkest and lightest pixel to 0 and 255; ``value`` is not used."""
    low, high = (f(x, dim=(2, 3), keepdim=True).double() for f in (torch.amin, torch.amax))
    # a number over a tensor is its reciprocal times that, which rounds twice
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)
    stretched = (x * scale + -low * scale).trunc().clamp(0, 255).to(torch.uint8)
    return picked(high > low, stretched, x)


def equalize(x: Tensor, value: Tensor) -> Tensor:
    """Make all values of each channel about as frequent; ``value`` is not used.

    With counts n_v, of which the last that is not 0 is n_last, and s = (sum n - n_last) // 255, a pixel of value v
    becomes (s // 2 + sum_{u < v} n_u) // s; where s is 0 the channel stays.
    """
    flat = x.flatten(2).long()
    counts = torch.zeros(*x.shape[:2], 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    last = counts.gather(2, flat.amax(dim=2, keepdim=True))
    step = (flat.shape[2] - last) // 255
    below = counts.cumsum(2) - counts
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    equal = table.gather(2, flat).to(torch.uint8).view(x.shape)
    return picked((step > 0)[:, :, :, None], equal, x)


def identity(x: Tensor, value: Tensor) -> Tensor:
    """Change nothing."""
    return x


def _grey(x: Tensor) -> Tensor:
    """Return (B, 1, H, W) uint8."""
    if x.shape[1] == 1:
        return x
    r, g, b = (x[:, i : i + 1].int() * weight for i, weight in enumerate(_LUMA))
    return ((r + g + b + _HALF) >> 16).to(torch.uint8)


def _blended(start: Tensor, x: Tensor, value: Tensor) -> Tensor:
    """Return what lies 1 + value of the way from ``start`` to ``x``, digits cut off, clipped."""
    share = (1 + value).float()[:, None, None, None]
    begin = start.float()
    return (begin + share * (x.float() - begin)).clamp(0, 255).to(torch.uint8)


OPERATIONS: dict[str, Operation] = {
    "identity": identity,
    "shear-x": shear_x,
    "shear-y": shear_y,
    "translate-x": translate_x,
    "translate-y": translate_y,
    "rotate": rotate,
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
}
