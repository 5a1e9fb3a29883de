"""LoRA fine-tuning of a small transformer: perturb the adapters, or the full weights below them? With the norms.

From random weights the transformer learns the digits 0 to 4. Then adapters and a new head learn 5 to 9 from 100
images. SEEDS=10 python examples/lora_trial.py
"""

import copy
import os
from functools import cache

import peft
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import steppe
from steppe.core.method.numerics import full_weights

SEEDS, EPOCHS, IMAGES, BATCH, LR = int(os.environ.get("SEEDS", "2")), 20, 100, 25, 0.01
METHODS = [
    "plain", "repeat-step", "sam:rho=0.05", "sam:rho=0.2", "lpf-sgd:gamma=cosine(0,0.05),M=1",
    "flat-lora:rho=cosine(0,0.05)", "flat-lora:rho=cosine(0,0.2)", "bi-lora:rho=0.05", "bi-lora:rho=0.5",
]  # fmt: skip
LORA = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["qkv", "out", "up", "down"], modules_to_save=["head"])


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        q, k, v = (t.unflatten(2, (2, -1)).transpose(1, 2) for t in self.qkv(self.norms[0](x)).chunk(3, 2))
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    """Two blocks over the eight rows of an image."""

    def __init__(self, width=32):
        super().__init__()
        self.embed, self.place = nn.Linear(8, width), nn.Parameter(0.1 * torch.randn(8, width))
        self.blocks, self.head = nn.Sequential(Block(width), Block(width)), nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.blocks(self.embed(x) + self.place).mean(1))


def digits(first):
    """Return the images (N, 8, 8) of five digits, and their classes from 0."""
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    chosen = (y >= first) & (y < first + 5)
    return x[chosen].float().view(-1, 8, 8) / 8 - 1, y[chosen] - first


@cache
def pretrained(seed):
    """Return the transformer after 10 epochs of the digits 0 to 4, from random weights."""
    torch.manual_seed(seed)
    net, (x, y) = Transformer(), digits(0)
    step = steppe.Plain().bind(net, torch.optim.AdamW(net.parameters(), 3e-3))
    for _ in range(10):
        for part in torch.randperm(len(x)).split(32):
            step(x[part], y[part])
    return net


def make(seed):
    """Return the pretrained transformer with new adapters and a new head."""
    net = copy.deepcopy(pretrained(seed))
    torch.manual_seed(seed + 1000)
    net.head.reset_parameters()
    return peft.get_peft_model(net, LORA)


def norms(name):
    """Return the largest |e| of a pass in the trainable weights, and the relative change of the full weights."""
    net, (x, y), largest, rest = make(0), digits(5), [0.0, 0.0], []
    trained = [p for p in net.parameters() if p.requires_grad]
    weights = full_weights(net, trained, [net] * len(trained))

    def values():
        groups = trained, [w.value() for w in weights]
        return [torch.cat([p.detach().flatten() for p in group]) for group in groups]

    def measure(*_):
        e, change = (a - b for a, b in zip(values(), rest, strict=True))
        largest[:] = map(max, largest, (float(e.norm()), float(change.norm() / rest[1].norm())))

    net.register_forward_pre_hook(measure)
    count = IMAGES // BATCH
    step = steppe.parse(name).bind(net, torch.optim.AdamW(trained, LR), steps=EPOCHS * count)
    for i in range(EPOCHS * count):
        rest[:] = values()
        part = slice(i % count * BATCH, (i % count + 1) * BATCH)
        step(x[part], y[part])
    return largest


def main():
    result = steppe.compare(
        make, digits(5), METHODS, lr=LR, split={"train": IMAGES}, batch=BATCH, seeds=SEEDS, epochs=EPOCHS,
        out=os.environ.get("OUT"),
    )  # fmt: skip
    print(result)
    print(f"{'largest perturbation of a pass':32} {'|e|, trainable':>16} {'change / full weights':>22}")
    for name in METHODS:
        e, change = norms(name)
        print(f"{name:32} {e:16.3f} {change:22.4f}")
    return result


if __name__ == "__main__":
    main()
