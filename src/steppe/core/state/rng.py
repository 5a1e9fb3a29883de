"""Generators of a method's own noise, and the global RNG that dropout draws from."""

import torch
from torch import Tensor


def generator(seed: int, purpose: str, number: int, device: torch.device) -> torch.Generator:
    """Return a generator for one purpose; those of different purposes and numbers are unrelated."""
    # hash() is salted per process, so the purposes are numbered by their letters
    offset = int.from_bytes(purpose.encode()[:4], "big")
    mixed = int(seed) * 0x9E3779B1 + offset + number * 0xC2B2AE3D27D4EB4F
    return torch.Generator(device=device).manual_seed(mixed % 2**63)


def capture(device: torch.device) -> list[Tensor]:
    """Return the state of the global RNG that a pass on ``device`` draws from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def restore(states: list[Tensor], device: torch.device) -> None:
    """Restore the state of the global RNG."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
