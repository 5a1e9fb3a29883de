"""Code written for davda54's SAM optimizer: only the import is changed."""

import torch
from sklearn.datasets import load_digits

from steppe.integrations.torch_optimizer import SAMOptimizer  # from sam import SAM

digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
loss_fn = torch.nn.CrossEntropyLoss()
optimizer = SAMOptimizer(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)

for _ in range(10):
    for rows in torch.randperm(1400).split(70):
        loss = loss_fn(model(x[train][rows]), y[train][rows])
        loss.backward()
        optimizer.first_step(zero_grad=True)
        loss_fn(model(x[train][rows]), y[train][rows]).backward()
        optimizer.second_step(zero_grad=True)
    scheduler.step()

accuracy = (model(x[test]).argmax(1) == y[test]).float().mean()
print(f"last loss {loss:.3f}, test accuracy {accuracy:.1%}")
