"""Generators of a method's own noise, and the global RNG that dropout draws from."""

import torch
from torch import Tensor


def generator(seed: int, purpose: str, number: int, device: torch.device) -> torch.Generator:
    """Return a generator for one purpose; those of different purposes and numbers are unrelated."""
    # hash() is salted per process, so the purposes are numbered by their letters
    offset = int.from_bytes(purpose.encode()[:4], "big")
    mixed = int(seed) * 0x9E3779B1 + offset + number * 0xC2B2AE3D27D4EB4F
    return torch.Generator(device=device).manual_seed(mixed % 2**63)


def global_generators(device: torch.device) -> list[torch.Generator]:
    """Return the generators that a pass on ``device`` draws from."""
    if device.type != "cuda":
        return [torch.default_generator]
    torch.cuda.init()  # type: ignore[no-untyped-call]
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]


def capture(device: torch.device) -> list[Tensor]:
    """Return the state of the global RNG that a pass on ``device`` draws from."""
    return [g.get_state() for g in global_generators(device)]
