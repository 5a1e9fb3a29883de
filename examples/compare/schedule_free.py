"""Schedule-free AdamW under SAM; the exported weights evaluate as reported."""

import os
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from sklearn.datasets import load_diabetes

import steppe

SEEDS, EPOCHS = int(os.environ.get("SEEDS", "2")), int(os.environ.get("EPOCHS", "20"))


def make():
    return torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))


def main():
    x, y = load_diabetes(return_X_y=True)
    x, y = torch.tensor(x * 21, dtype=torch.float32), torch.tensor(y - y.mean(), dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        result = steppe.compare(
            make, ((x[:350], y[:350]), (x[350:], y[350:])), ["plain", "sam"], seeds=SEEDS, epochs=EPOCHS,
            out=folder, optimizer="schedulefree-adamw", lr=0.02, optim={"schedule": "constant"},
        )  # fmt: skip
        print(result)
        weights = load_file(
            result.export("sam", Path(folder) / "flat", seed=0, which="last") / "model.safetensors"
        )
    net = make()
    net.load_state_dict(weights)
    with torch.no_grad():
        rmse = float((net(x[350:]).squeeze(1) - y[350:]).square().mean().sqrt())
    reported = result.values("sam")[0]
    print(f"reported {reported:.4f}, exported {rmse:.4f}")
    assert abs(rmse - reported) < 1e-3
    return result


if __name__ == "__main__":
    main()
