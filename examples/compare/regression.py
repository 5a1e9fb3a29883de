"""Which method helps a small network on a table? Ten seeds, with an interval in the unit of the target."""

import os

import torch
from sklearn.datasets import load_diabetes
from torch import nn

import steppe

SEEDS, EPOCHS = int(os.environ.get("SEEDS", "10")), int(os.environ.get("EPOCHS", "60"))


class Net(nn.Module):
    def __init__(self, features, mean, std):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )
        self.mean, self.std = mean, std

    def forward(self, x):
        return self.mean + self.std * self.layers(x)  # in the unit of the target


def main():
    x, y = load_diabetes(return_X_y=True)
    x = (x / x.std(0)).astype("float32")
    result = steppe.compare(
        lambda seed: Net(x.shape[1], float(y.mean()), float(y.std())),
        (x, y.astype("float32")),
        ["plain", "repeat-step", "sam:rho=0.05", "asam", "ema"],
        metric="rmse",
        optimizer=torch.optim.AdamW,
        lr=0.001,
        seeds=SEEDS,
        epochs=EPOCHS,
    )
    print(result)
    print(result.difference("sam:rho=0.05", "plain"))
    return result


if __name__ == "__main__":
    main()
