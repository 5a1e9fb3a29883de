"""airbench94.py of KellerJordan/cifar10-airbench in plain PyTorch: the level that `cifar10-fast` should have.

    python -m benchmarks.restated.airbench94 --dataset folder:PATH --seed 0 --out DIR

Of steppe only the reading of the images is used. Losses are means instead of sums, so that the rate is
11.5 / (1 + 1 / (1 - 0.85)) = 1.5 for a batch of 1,024, and rate times weight decay 0.0153 / 7.667. It resumes
after the last epoch; DIR/result.json has the accuracies on the test images.
"""

import json
import math
import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe import data
from steppe.config import Data

EPOCHS, BATCH, LR, MOMENTUM, BIAS_FACTOR, SMOOTHING = 9.9, 1024, 1.5, 0.85, 64, 0.2
DECAY = 0.0153 / (1 + 1 / (1 - MOMENTUM))  # rate times weight decay, of a batch of BATCH
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
VIEWS = ("one view", "mirrored", "mirrored and shifted")


class Net(nn.Module):
    """Whitening 2x2, GELU, three groups of (conv, pool, norm, GELU, conv, norm, GELU), pool, head."""

    def __init__(self) -> None:
        super().__init__()
        self.white = nn.Conv2d(3, 24, 2)
        self.white.weight.requires_grad_(False)
        nn.init.zeros_(self.white.bias)  # type: ignore[arg-type]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for n_in, n_out in ((24, 64), (64, 64), (64, 256), (256, 256), (256, 256), (256, 256)):
            conv = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
            nn.init.dirac_(conv.weight[:n_in])
            norm = nn.BatchNorm2d(n_out, eps=1e-12, momentum=0.4)
            norm.weight.requires_grad_(False)
            self.convs.append(conv)
            self.norms.append(norm)
        self.head = nn.Linear(256, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, 10) of images (B, 3, 32, 32)."""
        x = F.gelu(self.white(x))
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = conv(x)
            x = F.max_pool2d(x, 2) if i % 2 == 0 else x
            x = F.gelu(norm(x))
        logits: Tensor = self.head(F.max_pool2d(x, 3).flatten(1)) / 9
        return logits

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the first filters to the whitening transform of the images' 2x2 patches, and to its negative."""
        patches = F.unfold(images, 2)  # (N, 12, positions)
        moment = torch.einsum("nip,njp->ij", patches, patches).double() / (len(patches) * patches.shape[2])
        values, vectors = torch.linalg.eigh(moment)
        filters = (vectors / (values + 5e-4).sqrt()).T.flip(0).float().view(12, 3, 2, 2)
        self.white.weight.copy_(torch.cat([filters, -filters]))


def rate_share(step: int, total: int) -> float:
    """Return the rate over its peak: from 0.2 to 1 in the first 23 %, then to 0.07, both in straight lines."""
    rise = int(0.23 * total)
    return 0.2 + 0.8 * step / rise if step < rise else 1 - 0.93 * (step - rise) / (total - rise)


def average_weight(step: int, total: int) -> float:
    """Return what the slow average keeps of itself after ``step`` steps."""
    return 0.95**5 * (step / total) ** 3


def new_optimizer(net: Net, batch: int) -> torch.optim.SGD:
    """Return SGD with the high rate for the biases of the norms; a step decays all weights alike."""
    biases = [norm.bias for norm in net.norms]
    others = [p for p in net.parameters() if p.requires_grad and all(p is not b for b in biases)]
    lr, decay = LR * batch / BATCH, DECAY * batch / BATCH
    groups = [
        {"params": params, "lr": lr * factor, "peak": lr * factor, "weight_decay": decay / (lr * factor)}
        for params, factor in ((biases, BIAS_FACTOR), (others, 1))
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM, nesterov=True)


def augmented(x: Tensor, mirrored: Tensor, shift: Tensor) -> Tensor:
    """Return images, some ``mirrored`` (B,), padded 2 pixels by reflection and cropped at ``shift`` (B, 2)."""
    wide = F.pad(torch.where(mirrored[:, None, None, None], x.flip(3), x), (2, 2, 2, 2), mode="reflect")
    size = x.shape[2]
    crops = [image[:, i : i + size, j : j + size] for image, (i, j) in zip(wide, shift.tolist(), strict=True)]
    return torch.stack(crops).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracies(net: Net, x: Tensor, y: Tensor, views: int) -> list[float]:
    """Return the accuracy of one view; with 3 ``views`` also with the mirror image, and with two shifts too."""
    net.eval()
    hits = [0] * views
    for images, labels in zip(torch.split(x, 500), torch.split(y, 500), strict=True):
        logits = [net(images)]
        if views > 1:
            wide, size = F.pad(images, (1, 1, 1, 1), mode="reflect"), x.shape[2]
            shifts = [wide[:, :, i : i + size, i : i + size] for i in (0, 2)]
            first, *others = [(net(view) + net(view.flip(3))) / 2 for view in (images, *shifts)]
            logits += [first, first / 2 + (others[0] + others[1]) / 4]
        for k, z in enumerate(logits):
            hits[k] += int((z.argmax(1) == labels).sum())
    net.train()
    return [h / len(y) for h in hits]


def train(options: Namespace, parts: Sequence[Tensor], out: Path) -> dict[str, Any]:
    """Train on ``parts`` (training images and labels, test images and labels), and return the accuracies."""
    x, y, test_x, test_y = parts
    autocast = torch.autocast("cpu", torch.bfloat16) if options.bf16 else nullcontext()
    torch.manual_seed(options.seed)
    net = Net()
    net.whiten(x[:5000])
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    per_epoch = len(x) // options.batch
    total = math.ceil(per_epoch * options.epochs)
    optimizer = new_optimizer(net, options.batch)
    mirrored_first = torch.rand(len(x)) < 0.5
    slow = {name: t.clone() for name, t in net.state_dict().items()}
    first, step, seconds = 0, 0, 0.0
    if (out / "state.pt").exists():
        state = torch.load(out / "state.pt", weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        mirrored_first, slow, first, step, seconds = (
            state[k] for k in ("mirrored", "slow", "epoch", "step", "seconds")
        )
        torch.set_rng_state(state["rng"])

    @torch.no_grad()
    def set_to_average(weight: float) -> None:
        for name, t in net.state_dict().items():
            if t.is_floating_point():
                t.copy_(slow[name].mul_(weight).add_(t, alpha=1 - weight))

    for epoch in range(first, math.ceil(options.epochs)):
        clock = time.perf_counter()
        net.white.bias.requires_grad_(epoch < 3)  # type: ignore[union-attr]
        mirrored, shift = mirrored_first ^ bool(epoch % 2), torch.randint(0, 5, (len(x), 2))
        losses = []
        for rows in torch.split(torch.randperm(len(x))[: per_epoch * options.batch], options.batch):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate_share(step, total)
            with autocast:
                logits = net(augmented(x[rows], mirrored[rows], shift[rows]))
            loss = F.cross_entropy(logits.float(), y[rows], label_smoothing=SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
            if step % 5 == 0:
                set_to_average(average_weight(step, total))
            if step == total:
                set_to_average(1.0)
                break
        seconds += time.perf_counter() - clock
        with autocast:
            (accuracy,) = accuracies(net, test_x, test_y, 1)
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}, test accuracy {accuracy:.2%}", flush=True)
        torch.save(
            {
                **{"net": net.state_dict(), "optimizer": optimizer.state_dict(), "mirrored": mirrored_first},
                **{"slow": slow, "epoch": epoch + 1, "step": step, "seconds": seconds},
                "rng": torch.get_rng_state(),
            },
            out / "state.tmp",
        )
        os.replace(out / "state.tmp", out / "state.pt")
    with autocast:
        by_views = dict(zip(VIEWS, accuracies(net, test_x, test_y, len(VIEWS)), strict=True))
    return {"seed": options.seed, "images": len(x), "steps": step, "seconds": seconds, "test": by_views}


def read_images(name: str, count: int | None = None) -> list[Tensor]:
    """Return training images and labels, test images and labels, normalised; with a ``count`` so many."""
    loaded: Any = data.load(name, Data(val=10, test=None if count is None else min(count, 1000)))
    x, y = (torch.cat([getattr(part, k) for part in (loaded.train, loaded.val)]) for k in ("x", "y"))
    rows = torch.from_numpy(np.random.default_rng(1).permutation(len(y))[:count])
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return [
        (x[rows].float() / 255 - mean) / std,
        y[rows],
        (loaded.test.x.float() / 255 - mean) / std,
        loaded.test.y,
    ]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, or go on, and return what result.json has."""
    parser = ArgumentParser("python -m benchmarks.restated.airbench94", description=__doc__)
    parser.add_argument("--dataset", required=True, help="CIFAR-10 as steppe names it, as folder:PATH")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--images", type=int, help="training images, all if not given")
    parser.add_argument("--bf16", action="store_true", help="the network in bfloat16; the record's is in float16")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "result.json"
    if path.exists():
        result: dict[str, Any] = json.loads(path.read_text())
        return result
    result = train(options, read_images(options.dataset, options.images), options.out)
    path.write_text(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
