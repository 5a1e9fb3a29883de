"""Checkpoint files: contents, damage, and the memory layout that fused optimizers need."""

import pickle
import random

import pytest
import torch
from torch import nn

from steppe import InputError
from steppe.training.checkpoint import file
from steppe.training.checkpoint.file import Checkpoint


def written(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    tensors = {"net.w": torch.randn(3, 4), "net.n": torch.tensor(7), "state.h": torch.randn(2).half()}
    file.write(path, Checkpoint(tensors, {"epoch": 3, "lr": 0.1 + 0.2}))
    return path, tensors


def test_tensors_and_plain_data_are_read_as_written(tmp_path):
    path, tensors = written(tmp_path)
    saved = file.read(path)
    assert saved.data == {"epoch": 3, "lr": 0.1 + 0.2}
    assert set(saved.part("net")) == {"w", "n"}
    for name, t in tensors.items():
        assert torch.equal(saved.tensors[name], t)
        assert saved.tensors[name].dtype == t.dtype


def refusal(path) -> str:
    try:
        file.read(path)
    except InputError as error:
        return str(error)
    return ""


def test_every_flipped_bit_and_every_cut_is_detected(tmp_path):
    path, _ = written(tmp_path)
    original, r, harmless = path.read_bytes(), random.Random(0), 0
    damaged = [original[: r.randrange(len(original))] for _ in range(60)]
    for _ in range(200):
        at = r.randrange(len(original))
        damaged.append(original[:at] + bytes([original[at] ^ (1 << r.randrange(8))]) + original[at + 1 :])
    for content in damaged:
        path.write_bytes(content)
        message = refusal(path)
        if message:
            assert str(path) in message and "delete it" in message and "\n" not in message
        else:  # a flip in the header's padding, which means the same to JSON
            assert file.read(path).data == {"epoch": 3, "lr": 0.1 + 0.2}
            harmless += 1
    assert harmless < 5


def test_a_pickle_is_refused_and_its_code_does_not_run(tmp_path):
    path = tmp_path / "checkpoint.safetensors"

    class Attack:
        def __reduce__(self):
            return (path.with_name("attacked").touch, ())

    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(InputError, match="is damaged"):
        file.read(path)
    assert not path.with_name("attacked").exists()


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD], ids=["adam", "sgd"])
def test_a_fused_optimizer_resumes_bitwise_in_channels_last(make, tmp_path):
    """Files are contiguous; the state must be restored in its parameter's layout."""

    def setup() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        options = {"momentum": 0.9} if make is torch.optim.SGD else {}
        return net, make(net.parameters(), lr=0.1, fused=True, **options)

    def train(net: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for k in seeds:
            torch.manual_seed(k)
            optimizer.zero_grad()
            net(torch.randn(2, 3, 6, 6)).square().sum().backward()
            optimizer.step()

    net, optimizer = setup()
    train(net, optimizer, range(3))
    tensors, data = file.pack_optimizer(optimizer)
    path = tmp_path / "checkpoint.safetensors"
    everything = file.prefixed("net", net.state_dict()) | file.prefixed("optimizer", tensors)
    file.write(path, Checkpoint(everything, data))
    train(net, optimizer, range(3, 6))

    other, other_optimizer = setup()
    saved = file.read(path)
    other.load_state_dict(saved.part("net"))
    file.unpack_optimizer(other_optimizer, saved.part("optimizer"), saved.data)
    train(other, other_optimizer, range(3, 6))
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
