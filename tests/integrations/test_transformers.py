"""A Trainer with a method: its own loop's training for plain, replayed micro-batches for other methods."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.many import farthest
from torch import Tensor, nn

import steppe

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from steppe.integrations import STATE, load_deployed, read_state, write_state  # noqa: E402
from steppe.integrations.transformers import SteppeTrainer  # noqa: E402

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
            self.step, self.runtime = step, step.runtime

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


def test_a_copy_evaluates_the_same_and_trains_a_model_of_its_own(tmp_path):
    ours = trainer(tmp_path, "ema:decay=0.9", learning_rate=0.1)
    ours.train()
    copied = copy.deepcopy(ours)
    loss = ours.evaluate()["eval_loss"]
    assert copied.evaluate()["eval_loss"] == loss
    copied.train()
    assert copied.evaluate()["eval_loss"] != loss
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


def test_each_training_trains_the_model_and_the_optimizer_that_it_has(tmp_path):
    """With ``model_init``, as in a hyperparameter search, each makes its own; without, the second goes on."""
    ours, weights = trainer(tmp_path, steppe.SAM()), []
    ours.model_init = lambda: bert()
    for _ in range(3):
        ours.train()
        weights.append([p.detach().clone() for p in ours.model.parameters()])
    assert farthest(weights[0], weights[1]) == farthest(weights[0], weights[2]) == 0
    assert distance(ours.model, bert()) > 1e-3
    whole = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    theirs, ours = trainer(tmp_path, None, **whole), trainer(tmp_path, "plain", **whole)
    for one in (theirs, theirs, ours, ours):
        one.train()
    assert distance(ours.model, theirs.model) <= 1e-5
    assert ours.step.passes.steps == 6


def gpt() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=8, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def bart() -> nn.Module:
    """A decoder whose loss, unlike that of other causal language models, does not shift the labels."""
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=40, d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, dropout=0.0,
        max_position_embeddings=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16,
    )  # fmt: skip
    return transformers.BartForCausalLM(config)


@pytest.mark.parametrize("model", [gpt, bart])
@pytest.mark.parametrize("labels", [(6, 6, 2, 2), (5, 3, 0, 0)], ids=["unequal", "one without"])
def test_micro_batches_with_unequal_labels_are_the_whole_batch(tmp_path, model, labels):
    ids = torch.randint(0, 40, (4, 6), generator=torch.Generator().manual_seed(1))
    rows = [
        {"input_ids": row, "labels": torch.where(torch.arange(6) < n, row, -100)}
        for row, n in zip(ids, labels, strict=True)
    ]
    settings = {"max_steps": 1, "warmup_steps": 0, "learning_rate": 0.1, "max_grad_norm": 0.0, "optim": "sgd"}
    nets = [model() for _ in range(3)]
    for net, size in zip(nets, (2, 4), strict=False):
        accumulated = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
        args = arguments(
            tmp_path, **settings, **accumulated, weight_decay=0.0, train_sampling_strategy="sequential"
        )
        SteppeTrainer(net, args, train_dataset=rows, method=steppe.SAM(rho=0.2)).train()
    assert distance(nets[0], nets[1]) < 1e-7
    data = {k: torch.stack([row[k] for row in rows]) for k in rows[0]}
    steppe.SAM(rho=0.2).bind(nets[2], torch.optim.SGD(nets[2].parameters(), 0.1), loss="model")(data)
    assert distance(nets[0], nets[2]) < 1e-7 < 1e-3 < distance(nets[0], model())


def ctc() -> nn.Module:
    """A loss that is the mean over samples, although its labels have -100."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    dropout = dict.fromkeys(("hidden", "attention", "activation", "feat_proj", "final"), 0.0)
    config = transformers.Wav2Vec2Config(
        vocab_size=8, conv_dim=(8,), conv_stride=(4,), conv_kernel=(8,), num_feat_extract_layers=1, layerdrop=0.0,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, apply_spec_augment=False,
        ctc_loss_reduction="mean", **small, **{f"{name}_dropout": p for name, p in dropout.items()},
    )  # fmt: skip
    return transformers.Wav2Vec2ForCTC(config)


def segmenter() -> nn.Module:
    """A loss that leaves out the pixels of the label 255."""
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        num_encoder_blocks=1, depths=[1], sr_ratios=[1], hidden_sizes=[8], patch_sizes=[3], strides=[2],
        num_attention_heads=[1], mlp_ratios=[1], decoder_hidden_size=8, num_labels=3, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, classifier_dropout_prob=0.0, drop_path_rate=0.0,
    )  # fmt: skip
    net = transformers.SegformerForSemanticSegmentation(config)
    net.decode_head.batch_norm = nn.Identity()  # whose statistics are those of a micro-batch
    return net


@pytest.mark.parametrize("model", [ctc, segmenter])
def test_micro_batches_weigh_what_the_model_s_loss_is_a_mean_of(tmp_path, model):
    rng, rows = torch.Generator().manual_seed(1), []
    for n in (1, 1, 5, 5):
        if model is ctc:
            labels = torch.where(torch.arange(5) < n, torch.arange(1, 6), -100)
            rows.append({"input_values": torch.randn(200, generator=rng), "labels": labels})
        else:
            labels = torch.where(torch.rand(8, 8, generator=rng) < n / 6, n % 3, 255)
            rows.append({"pixel_values": torch.randn(3, 8, 8, generator=rng), "labels": labels})
    settings = {"max_steps": 1, "warmup_steps": 0, "learning_rate": 0.1, "max_grad_norm": 0.0, "optim": "sgd"}
    nets = [model(), model()]
    for net, size in zip(nets, (2, 4), strict=True):
        accumulated = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
        args = arguments(
            tmp_path, **settings, **accumulated, weight_decay=0.0, train_sampling_strategy="sequential"
        )
        SteppeTrainer(net, args, train_dataset=rows, method="plain").train()
    moved = distance(nets[1], model())
    assert distance(*nets) < 1e-5 * moved


def test_a_model_with_labels_of_other_names_is_trained(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.BertForQuestionAnswering(config)
    before = [p.detach().clone() for p in model.parameters()]
    ids = torch.randint(0, 40, (8, 6))
    rows = [{"input_ids": row, "start_positions": row[0] % 6, "end_positions": row[1] % 6} for row in ids]
    SteppeTrainer(model, arguments(tmp_path, max_steps=2), train_dataset=rows, method="sam").train()
    assert farthest(before, list(model.parameters())) > 1e-4
    with pytest.raises(steppe.InputError, match="Give the labels with the batch"):
        SteppeTrainer(
            model, arguments(tmp_path), train_dataset=[{"input_ids": row} for row in ids], method="sam"
        ).train()


class Averaging(torch.optim.SGD):
    """Has modes, as schedule-free optimizers do."""

    mode = None

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"

    def step(self, closure: Any = None) -> None:
        assert self.mode == "train"
        super().step(closure)


def with_modes(out: Path, method: Any, **more: Any) -> Any:
    ours = trainer(out, method, **more)
    ours.optimizer = Averaging(ours.model.parameters(), lr=0.1)
    return ours


def test_an_optimizer_with_modes_is_in_its_training_mode(tmp_path):
    ours = with_modes(tmp_path, "sam", eval_strategy="steps", eval_steps=2)
    ours.train()
    assert ours.step.passes.updates == 6 and ours.step.runtime.optimizer.mode == "eval"
    with pytest.raises(steppe.InputError, match="the optimizer averages the weights itself, and so does EMA"):
        with_modes(tmp_path, "ema").train()


@pytest.mark.parametrize("method", ["ema:decay=0.9", "sam+swa:start=0"])
def test_the_best_checkpoint_has_the_mean_of_its_own(tmp_path, method):
    save = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    ours = trainer(tmp_path, method, **save, load_best_model_at_end=True, learning_rate=5.0, optim="sgd")
    ours.train()
    losses = [line["eval_loss"] for line in ours.state.log_history if "eval_loss" in line]
    best = min(losses)
    assert best < losses[-1] - 0.01  # the last one is another
    assert ours.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)
    before = copy.deepcopy(ours.model.state_dict())
    ours.save_model(str(tmp_path / "final"))
    assert all(torch.equal(v, before[k]) for k, v in ours.model.state_dict().items())
    saved = trainer(tmp_path, None, type(ours.model).from_pretrained(tmp_path / "final"))
    assert saved.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)
    checkpoint = ours.state.best_model_checkpoint
    model = type(ours.model).from_pretrained(checkpoint)
    plain = trainer(tmp_path, None, model)
    assert plain.evaluate()["eval_loss"] != pytest.approx(best, rel=1e-3)  # of the trained weights
    load_deployed(model, method, checkpoint)
    assert plain.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)
    resumed = trainer(tmp_path, method, **save, eval_on_start=True, learning_rate=5.0, optim="sgd")
    resumed.train(resume_from_checkpoint=checkpoint)
    evaluated = [line["eval_loss"] for line in resumed.state.log_history if "eval_loss" in line]
    assert evaluated[:2] == pytest.approx([best, best], rel=1e-6)  # in the checkpoint, and before the first step
    for content, match in (
        (tmp_path, "has no state of a method"),
        (tmp_path / "none.ckpt", "cannot read .*none.ckpt"),
        ({"state": {}, "method": "SAM()"}, "is of SAM"),
    ):
        with pytest.raises(steppe.InputError, match=match):
            load_deployed(model, method, content)


def test_each_process_has_a_state_of_its_own(tmp_path):
    steps = [
        steppe.RWP().bind(net := bert(), torch.optim.SGD(net.parameters(), 0.1), seed=seed) for seed in (1, 2)
    ]
    for rank, step in enumerate(steps):
        write_state(tmp_path, step.state_dict(), rank, 2)
    for rank, step in enumerate(steps):
        noise = read_state(tmp_path, rank, 2)["generators"]["noise"]
        assert torch.equal(noise, step.state_dict()["generators"]["noise"])
    with pytest.raises(steppe.InputError, match="the checkpoint has 2 processes and this run 1"):
        read_state(tmp_path, 0, 1)


class OwnLoss:
    """Three times the model's loss, computed in the Trainer."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        return (3 * outputs.loss, outputs) if return_outputs else 3 * outputs.loss


class Theirs(OwnLoss, transformers.Trainer):
    pass


class Ours(SteppeTrainer, Theirs):
    pass


def squared(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return ((outputs.logits - torch.nn.functional.one_hot(labels, 3)) ** 2).mean()


@pytest.mark.parametrize(
    ("kinds", "settings", "more"),
    [
        ((transformers.Trainer, SteppeTrainer), {"label_smoothing_factor": 0.2}, {}),
        ((transformers.Trainer, SteppeTrainer), {}, {"compute_loss_func": squared}),
        ((Theirs, Ours), {}, {}),
    ],
    ids=["label smoothing", "compute_loss_func", "compute_loss"],
)
def test_a_loss_of_the_trainer_is_called_in_every_pass(tmp_path, kinds, settings, more):
    """Plain training is the Trainer's own, on whole batches; others differ, MESA by the outputs it compares."""
    whole = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 3} | settings
    data = {"train_dataset": Sentences(), "data_collator": padded, **more}
    theirs = kinds[0](bert(), arguments(tmp_path, **whole), **data)
    theirs.train()
    for method, same in (("plain", True), ("sam:rho=0.5", False), ("mesa:decay=0.5", False)):
        parts = arguments(tmp_path, **{"max_steps": 3} | settings)
        ours = kinds[1](bert(), parts, method=method, **data)
        ours.train()
        assert (distance(ours.model, theirs.model) <= 1e-5) == same
        assert ours.step.passes.steps == 3


def test_every_pass_is_in_the_trainer_s_own_context(tmp_path):
    class Counted(SteppeTrainer):
        count = 0

        def compute_loss_context_manager(self) -> Any:
            self.count += 1
            return super().compute_loss_context_manager()

    counts = []
    for steps in (2, 3):
        settings = {"train_dataset": Sentences(), "data_collator": padded}
        ours = Counted(bert(), arguments(tmp_path, max_steps=steps), method="sam", **settings)
        ours.train()
        counts.append(ours.count)
    assert counts[1] - counts[0] == 2 * 2  # two passes of two micro-batches; the first step also checks the loss


class Scaled(transformers.Trainer):
    """Counts its training steps, as a class that wraps them in a context does."""

    count = 0

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return super().training_step(*args, **kwargs)


def test_it_is_a_mixin_over_other_trainers(tmp_path):
    class First(SteppeTrainer, transformers.Seq2SeqTrainer):
        pass

    class Last(Scaled, SteppeTrainer):
        method, bind_options = "sam:rho=0.3", {"weigh": len}

    class Hidden(SteppeTrainer, Scaled):
        pass

    data = {"train_dataset": Sentences(), "data_collator": padded}
    args = transformers.Seq2SeqTrainingArguments(
        **{k: v for k, v in arguments(tmp_path, max_steps=2).to_dict().items() if v is not None}
        | {"report_to": []}
    )
    first = First(bert(), args, method="sam:rho=0.3", bind={"weigh": len}, **data)
    last = Last(bert(), arguments(tmp_path, max_steps=2), **data)
    first.train()
    last.train()
    assert last.count == 4
    assert distance(first.model, last.model) <= 0.0
    with pytest.raises(steppe.InputError, match="Scaled.training_step would not be called; name SteppeTrainer"):
        Hidden(bert(), arguments(tmp_path), method="sam", **data)
    with pytest.raises(steppe.InputError, match="there is no method; give method="):
        First(bert(), args, **data)


class Gradients(transformers.TrainerCallback):
    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("kind", "method", "settings", "more", "message"),
    [
        (SteppeTrainer, "sam", {}, {"callbacks": [Gradients()]}, "Gradients overrides on_pre_optimizer_step"),
        (SteppeTrainer, "ema", {"save_only_model": True, "save_strategy": "steps"}, {}, "save_only_model is"),
    ],
)
def test_what_a_method_would_not_use_is_refused(tmp_path, kind, method, settings, more, message):
    with pytest.raises(steppe.InputError, match=message):
        kind(bert(), arguments(tmp_path, **settings), train_dataset=Sentences(), method=method, **more)


def test_a_callback_added_after_construction_is_refused_when_training_starts(tmp_path):
    ours = trainer(tmp_path, "sam")
    ours.add_callback(Gradients())
    with pytest.raises(steppe.InputError, match="Gradients overrides on_pre_optimizer_step"):
        ours.train()


def test_deepspeed_is_refused_before_anything_is_built():
    args = SimpleNamespace(deepspeed="config.json")
    with pytest.raises(steppe.InputError, match="deepspeed is used, which does not expose gradients"):
        SteppeTrainer(bert(), args, method="sam")
