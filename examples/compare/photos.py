"""Photos listed in a CSV with two labels each: a folder is made up here, then compared by macro F1."""

import csv
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import steppe

SEEDS, EPOCHS = int(os.environ.get("SEEDS", "3")), int(os.environ.get("EPOCHS", "8"))


def write_photos(folder, count=240, size=24):
    """Write photos that are bright or dark, with or without a stripe, and a table of their names and labels."""
    rng = np.random.default_rng(0)
    with open(folder / "labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "bright", "stripe"])
        for i in range(count):
            bright, stripe = rng.integers(2, size=2)
            pixels = rng.integers(60, 120, (size, size, 3)) + 60 * bright
            pixels[:, size // 2 - 2 : size // 2 + 2] += 40 * stripe
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
            table.writerow([f"{i}.png", bright, stripe])
    return folder / "labels.csv"


def main():
    with tempfile.TemporaryDirectory() as folder:
        table = write_photos(Path(folder))
        result = steppe.compare(
            "simple-cnn", f"images:{table}", ["plain", "sam"], lr=0.001, seeds=SEEDS, epochs=EPOCHS,
            split={"augment": ("flip",), "size": 24},
        )  # fmt: skip
    print(result)
    return result


if __name__ == "__main__":
    main()
