"""A Trainer with a method: its own loop's training for plain, replayed micro-batches for other methods."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.many import farthest
from torch import Tensor, nn

import steppe

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from steppe.integrations.transformers import STATE, SteppeTrainer  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)


def bert(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, num_labels=3, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


class Sentences(torch.utils.data.Dataset):
    """Of unequal lengths; the class is that of the first word."""

    def __len__(self) -> int:
        return 44

    def __getitem__(self, i: int) -> dict[str, Any]:
        g = torch.Generator().manual_seed(i)
        ids = torch.randint(0, 40, (3 + i % 4,), generator=g).tolist()
        return {"input_ids": ids, "labels": ids[0] % 3}


def padded(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    longest = max(len(r["input_ids"]) for r in rows)
    ids = torch.tensor([r["input_ids"] + [0] * (longest - len(r["input_ids"])) for r in rows])
    mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([r["labels"] for r in rows])}


def arguments(out: Path, **more: Any) -> Any:
    settings = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 6, "learning_rate": 1e-2,
        "max_grad_norm": 0.5, "weight_decay": 0.01, "warmup_steps": 2, "save_strategy": "no", "report_to": [],
        "use_cpu": True, "seed": 5, "disable_tqdm": True, "logging_steps": 1,
    }  # fmt: skip
    return transformers.TrainingArguments(output_dir=str(out), **(settings | more))


def trainer(out: Path, method: Any, model: nn.Module | None = None, **more: Any) -> Any:
    settings = {"model": bert() if model is None else model, "args": arguments(out, **more)}
    settings |= {"train_dataset": Sentences(), "eval_dataset": Sentences(), "data_collator": padded}
    return transformers.Trainer(**settings) if method is None else SteppeTrainer(**settings, method=method)


def distance(a: nn.Module, b: nn.Module) -> float:
    return farthest(list(a.parameters()), list(b.parameters()))


def test_plain_is_the_trainer_s_own_loop_with_the_whole_batch(tmp_path):
    """Not its loop over micro-batches: transformers 5.23 adds their losses up where a model ignores the count."""
    whole = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    theirs, ours = trainer(tmp_path, None, **whole), trainer(tmp_path, steppe.Plain())
    theirs.train()
    ours.train()
    assert distance(ours.model, theirs.model) <= 1e-5
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    rates = [[line["learning_rate"] for line in t.state.log_history if "loss" in line] for t in (ours, theirs)]
    assert rates[0] == rates[1]
    assert ours.step.passes.steps == 6


def test_every_pass_sees_every_micro_batch(tmp_path):
    """SAM in the Trainer is SAM in a loop of one's own, given the same micro-batches."""
    ours = trainer(tmp_path, steppe.SAM(rho=0.3), lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0)
    steps: list[list[Any]] = []
    bound = ours._bound

    class Recording:
        def __init__(self, step: steppe.Step):
            self.step = step

        def __call__(self, micro_batches: list[Any]) -> Any:
            steps.append(micro_batches)
            return self.step(micro_batches)

    ours._bound = lambda model: Recording(bound(model))
    ours.train()
    assert [len(micro_batches) for micro_batches in steps] == [2] * 5 + [1]  # the epoch's 11 micro-batches
    model = bert()
    step = steppe.SAM(rho=0.3).bind(
        model, torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.0), loss="model", clip=0.5
    )
    for micro_batches in steps:
        step(micro_batches)
    assert distance(ours.model, model) <= 1e-6


@pytest.mark.parametrize("method", [steppe.LookSAM(k=3), steppe.RWP()], ids=repr)
def test_a_checkpoint_resumes_bitwise(method, tmp_path):
    whole = trainer(tmp_path / "whole", method, bert(dropout=0.2), max_steps=6)
    whole.train()
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    first = trainer(tmp_path / "parts", method, bert(dropout=0.2), **settings)

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = state.global_step == 3
            return control

    first.add_callback(Stop())
    first.train()
    checkpoint = tmp_path / "parts" / "checkpoint-3"
    assert (checkpoint / STATE).exists()
    second = trainer(tmp_path / "parts", method, bert(dropout=0.2), **settings)
    second.train(resume_from_checkpoint=str(checkpoint))
    assert second.step.passes.steps == 6
    assert distance(second.model, whole.model) <= 0.0


@pytest.mark.slow
def test_a_small_bert_learns(tmp_path):
    ours = trainer(tmp_path, "sadt-v1", bert(dropout=0.1), max_steps=60, warmup_steps=0)
    ours.train()
    losses = [line["loss"] for line in ours.state.log_history if "loss" in line]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_the_deployed_weights_are_evaluated(tmp_path):
    ours = trainer(tmp_path, "ema:decay=0.5", eval_strategy="steps", eval_steps=3)
    evaluated: list[list[Tensor]] = []

    def record(*_: Any) -> None:
        if not torch.is_grad_enabled():
            evaluated.append([p.detach().clone() for p in ours.model.parameters()])

    ours.model.register_forward_pre_hook(record)
    ours.train()
    trained = [p.detach().clone() for p in ours.model.parameters()]
    with ours.step.deployed_weights():
        mean = [p.detach().clone() for p in ours.model.parameters()]
        loss = trainer(tmp_path, None, ours.model).evaluate()["eval_loss"]
    assert farthest(trained, mean) > 0 and farthest(evaluated[-1], mean) == 0
    assert ours.evaluate()["eval_loss"] == loss


def test_bf16_and_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        bert(), peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ours = trainer(tmp_path, steppe.SAM(), model, bf16=True)
    ours.train()
    assert ours.step.runtime.precision.name == "bf16"
    changed = {k for k, v in ours.model.state_dict().items() if not torch.equal(before[k], v)}
    assert changed
    assert all("lora_" in k or "classifier" in k for k in changed)


def test_what_hides_the_loss_is_refused(tmp_path):
    with pytest.raises(steppe.InputError, match="label_smoothing_factor is used"):
        trainer(tmp_path, steppe.SAM(), label_smoothing_factor=0.1)
