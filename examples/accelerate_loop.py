"""A training loop prepared by Accelerate: accelerate launch examples/accelerate_loop.py, or plain python."""

import accelerate
import torch
from sklearn.datasets import load_digits

import steppe
from steppe.integrations.accelerate import bind

digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
data = torch.utils.data.TensorDataset(x[:1400], y[:1400])

accelerate.utils.set_seed(0)
accelerator = accelerate.Accelerator(mixed_precision="bf16")
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
loader = torch.utils.data.DataLoader(data, batch_size=70, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
step = bind(steppe.ASAM(rho=0.5), accelerator, model, optimizer, clip=1.0)

for _ in range(10):
    for batch in loader:
        out = step(*batch)

model.eval()
with torch.no_grad():
    right = model(x[1400:].to(accelerator.device)).argmax(1) == y[1400:].to(accelerator.device)
accelerator.print(f"last loss {out.loss:.3f}, test accuracy {right.float().mean():.1%}, {step.passes}")
