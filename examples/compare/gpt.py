"""A GPT on the documentation of Python by characters: perplexity, with Muon for the matrices and a last decay."""

import os

import steppe

SEEDS, EPOCHS = int(os.environ.get("SEEDS", "3")), int(os.environ.get("EPOCHS", "4"))
MODEL, TRAIN = os.environ.get("MODEL", "gpt-1m"), float(os.environ.get("TRAIN", "0.5"))


def main():
    result = steppe.compare(
        MODEL,
        "pydoc-text",
        ["plain", "sam", "ema"],
        optimizer="muon+adamw",
        lr=0.003,
        optim={"schedule": "wsd", "warmup": 0.05},
        split={"train": TRAIN},
        seeds=SEEDS,
        epochs=EPOCHS,
        batch=64,
    )
    print(result)
    return result


if __name__ == "__main__":
    main()
