"""BERT with LoRA adapters, trained with GSAM by a Hugging Face Trainer; gradient accumulation is replayed.

Small and untrained, so that it runs anywhere: for a real one, AutoModelForSequenceClassification.from_pretrained
and your tokenizer's ids.
"""

import tempfile

import peft
import torch
import transformers

import steppe
from steppe.integrations.transformers import SteppeTrainer

transformers.set_seed(0)
size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
config = transformers.BertConfig(vocab_size=40, num_labels=3, **size)
bert = transformers.BertForSequenceClassification(config)
lora = peft.LoraConfig(r=8, target_modules=["query", "value"], modules_to_save=["classifier"], task_type="SEQ_CLS")
model = peft.get_peft_model(bert, lora)

ids = torch.randint(0, 40, (640, 8))  # a text belongs to the class of its first word
data = [{"input_ids": row, "labels": row[0] % 3} for row in ids]

with tempfile.TemporaryDirectory() as folder:
    args = transformers.TrainingArguments(
        folder,
        num_train_epochs=8,
        learning_rate=2e-2,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
    )
    method = steppe.GSAM(rho=0.05, alpha=0.1)
    trainer = SteppeTrainer(model=model, args=args, train_dataset=data, method=method)
    loss = trainer.train().training_loss

new_ids = torch.randint(0, 40, (300, 8)).to(model.device)
with torch.no_grad():
    accuracy = (model.eval()(input_ids=new_ids).logits.argmax(1) == new_ids[:, 0] % 3).float().mean()
print(f"mean loss {loss:.3f}, accuracy on new texts {accuracy:.1%}, {trainer.step.passes}")
