"""Any method in your own training loop: two lines are new."""

import torch
from sklearn.datasets import load_digits

import steppe

digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
step = steppe.SAM(rho=0.05).bind(model, optimizer)  # 1

for _ in range(10):
    for rows in torch.randperm(1400).split(70):
        out = step(x[train][rows], y[train][rows])  # 2
    scheduler.step()

accuracy = (model(x[test]).argmax(1) == y[test]).float().mean()
print(f"last loss {out.loss:.3f}, test accuracy {accuracy:.1%}, {step.passes}")
