"""Token classification with a BERT-like network and a Hugging Face data set in memory; padding counts nothing."""

import os

import torch
from datasets import Dataset
from transformers import BertConfig, BertForTokenClassification

import steppe

SEEDS, EPOCHS = int(os.environ.get("SEEDS", "3")), int(os.environ.get("EPOCHS", "5"))


def sentences(count=300, vocabulary=40):
    """Return rows of unequal length; a token's class says whether it is larger than the one before it."""
    draw = torch.Generator().manual_seed(0)
    rows = {"input_ids": [], "attention_mask": [], "labels": []}
    for _ in range(count):
        length = int(torch.randint(5, 13, (1,), generator=draw))
        tokens = torch.randint(1, vocabulary, (length,), generator=draw)
        labels = [-100, *(tokens[1:] > tokens[:-1]).long().tolist()]  # the first token has no class
        rows["input_ids"].append(tokens.tolist())
        rows["attention_mask"].append([1] * length)
        rows["labels"].append(labels)
    return Dataset.from_dict(rows)


def make(seed):
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForTokenClassification(BertConfig(vocab_size=40, num_labels=2, **size))


def main():
    result = steppe.compare(
        make, sentences(), ["plain", "sam"], task="token classification", optimizer=torch.optim.AdamW, lr=0.001,
        seeds=SEEDS, epochs=EPOCHS,
    )  # fmt: skip
    print(result)
    return result


if __name__ == "__main__":
    main()
