"""Augmentation steps that mix each image and label with a partner's; conventions as in `basic`."""

from collections.abc import Sequence

import numpy as np

from steppe.data.transforms.basic import Sample, Transform, boxes, edges
from steppe.data.transforms.draws import Draws, Plan
from steppe.data.transforms.pil_ops import to_float, where


def _draw_mixup(rng: Draws, shape: Sequence[int]) -> Plan:
    return {"share": rng.beta(1.0, 1.0, shape[0]).astype(np.float32)}


def _mixup(sample: Sample, partner: Sample, plan: Plan) -> Sample:
    """Blend each image and label with its partner's; the image's own share is from Beta(1, 1).

    Zhang et al., ICLR 2018, arXiv:1710.09412, with their alpha of 1 for CIFAR.
    """
    share = plan["share"]
    wide = share[:, None, None, None]
    x = wide * to_float(sample.x) + (1 - wide) * to_float(partner.x)
    return Sample(x, share[:, None] * sample.y + (1 - share[:, None]) * partner.y)


def _draw_cutmix(rng: Draws, shape: Sequence[int]) -> Plan:
    count, _, h, w = shape
    side = np.floor(h * np.sqrt(1 - rng.beta(0.25, 0.25, count))).astype(int)
    return edges(rng.integers(0, h, count), rng.integers(0, w, count), side, h, w, least=1)


def _cutmix(sample: Sample, partner: Sample, plan: Plan) -> Sample:
    """Paste a box of the partner into each image; labels mix by the box's area. As in the SADT notebook.

    Per image: lambda ~ Beta(0.25, 0.25), side floor(S sqrt(1 - lambda)), centre a uniform pixel, box from
    centre - side // 2 to centre + side // 2 clipped to the image, an empty side counted as 1.
    Yun et al., ICCV 2019, arXiv:1905.04899; there the partner is another image of the batch.
    """
    inside = boxes(plan, *sample.x.shape[2:])
    share = 1 - inside.float().mean(dim=(1, 2))[:, None]
    pasted, x = partner.x, sample.x
    if pasted.dtype != x.dtype:
        pasted, x = to_float(pasted), to_float(x)
    return Sample(where(inside[:, None], pasted, x), share * sample.y + (1 - share) * partner.y)


mixup = Transform(_draw_mixup, _mixup)
cutmix = Transform(_draw_cutmix, _cutmix)
