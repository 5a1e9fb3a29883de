"""A timm model in a loop like timm's: the method replaces its loss scaler.

In a copy of timm's train.py it is the same line, after the task is prepared and the optimizer created.
"""

import timm
import torch
from sklearn.datasets import load_digits
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.task import ClassificationTask

import steppe
from steppe.integrations.timm import SteppeScaler

digits = load_digits()
x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)

torch.manual_seed(0)
shape = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 10}
model = timm.create_model("vit_tiny_patch16_224", **shape, embed_dim=32, depth=2, num_heads=2)
task = ClassificationTask(model, criterion_kwargs={"smoothing": 0.1}, verbose=False)
optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.05)
scheduler = CosineLRScheduler(optimizer, t_initial=10)
loss_scaler = SteppeScaler(steppe.SAM(rho=0.01), task, optimizer, precision="bf16")  # instead of NativeScaler()

for epoch in range(10):
    task.train()
    for rows in torch.randperm(1400).split(70):
        loss = task(x[train][rows], y[train][rows])["loss"]
        loss_scaler(loss, optimizer, clip_grad=1.0, parameters=task.get_clip_parameters())
        optimizer.zero_grad()
    scheduler.step(epoch + 1)

model.eval()
with torch.no_grad():
    accuracy = (model(x[test]).argmax(1) == y[test]).float().mean()
print(f"last loss {loss:.3f}, test accuracy {accuracy:.1%}, {loss_scaler.step.passes}")
