"""The radius of SAM for the table of regression.py, chosen on validation samples and confirmed on fresh seeds."""

import os

import torch
from regression import Net
from sklearn.datasets import load_diabetes

import steppe

TRIALS, EPOCHS = int(os.environ.get("TRIALS", "12")), int(os.environ.get("EPOCHS", "40"))


def main():
    x, y = load_diabetes(return_X_y=True)
    x = (x / x.std(0)).astype("float32")
    tuned = steppe.tune(
        lambda seed: Net(x.shape[1], float(y.mean()), float(y.std())),
        (x, y.astype("float32")),
        "sam",
        "rho=0.005..0.5",
        trials=TRIALS,
        confirm=5,
        optimizer=torch.optim.AdamW,
        lr=0.001,
        epochs=EPOCHS,
    )
    print(tuned)
    return tuned


if __name__ == "__main__":
    main()
