"""A LightningModule trained with ASAM: manual optimisation with ``self.step``."""

import lightning
import torch
from sklearn.datasets import load_digits

import steppe
from steppe.integrations.lightning import SteppeMixin


class Classifier(SteppeMixin, lightning.LightningModule):
    method = steppe.ASAM(rho=0.5)
    bind_options = {"clip": 1.0, "precision": "bf16"}

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        out = self.step(*batch)
        self.log("loss", out.loss)

    def on_train_epoch_end(self):
        self.lr_schedulers().step()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)]


digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
data = torch.utils.data.TensorDataset(x[:1400], y[:1400])

lightning.seed_everything(0, verbose=False)
module = Classifier()
quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = lightning.Trainer(max_epochs=10, accelerator="auto", devices=1, logger=False, **quiet)
trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=70, shuffle=True))

with torch.no_grad():
    accuracy = (module(x[1400:].to(module.device)).argmax(1) == y[1400:].to(module.device)).float().mean()
print(f"test accuracy {accuracy:.1%}, {module.step.passes}")
