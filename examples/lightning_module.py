"""A LightningModule as it is, trained with ASAM by a callback."""

import lightning
import torch
from sklearn.datasets import load_digits

import steppe
from steppe.integrations.lightning import SteppeCallback


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = torch.nn.functional.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)]


digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
data = torch.utils.data.TensorDataset(x[:1400], y[:1400])

lightning.seed_everything(0, verbose=False)
module, callback = Classifier(), SteppeCallback(steppe.ASAM(rho=0.5))
trainer = lightning.Trainer(
    callbacks=[callback],
    max_epochs=10,
    accelerator="auto",
    devices=1,
    precision="bf16-mixed",
    gradient_clip_val=1.0,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=70, shuffle=True))

with torch.no_grad():
    accuracy = (module.net(x[1400:].to(module.device)).argmax(1) == y[1400:].to(module.device)).float().mean()
print(f"test accuracy {accuracy:.1%}, {callback.step.passes}")
