"""Presets: settings of methods by the table or file that they are from. Each method's card names its source."""

_PAPER: dict[str, float | str] = {"sigma": 1e-4, "scope": "all", "direction": "pre-aux"}
_NOTEBOOK: dict[str, float | str] = {"sigma": 1e-4, "scope": "kernels"}

# by source and variant
SADT: dict[str, dict[int, dict[str, float | str]]] = {
    "paper": {1: _PAPER, 2: {**_PAPER, "scope": "last-conv last-dense"}, 3: _PAPER},
    "notebook": {
        1: {**_NOTEBOOK, "direction": "pre-aux"},
        2: {"sigma": 0.1, "scope": "last-bias* tensor:7", "direction": "aux-pre"},
        3: {**_NOTEBOOK, "direction": "aux-pre"},
    },
}

# omega, beta, gamma, every, of the supplement's tables 6 and 7 (Zhang et al., CVPR 2023, arXiv:2303.14666). Names
# are DATA-NETWORK, with the number of students if not two; noisy, 10% and 1% are the settings of table 7.
_OKDPH: dict[str, tuple[float, float, float, str]] = {
    "": (0.8, 0.8, 0.5, "5b"),  # without a preset: the code's defaults, table 6's ``every``
    # table 6
    "cifar10-resnet32": (0.8, 0.8, 0.5, "1e"),
    "cifar10-resnet110": (0.8, 0.8, 0.5, "5b"),
    "cifar10-vgg16": (0.3, 0.3, 1.0, "1e"),
    "cifar10-densenet40-12": (0.8, 0.8, 0.5, "5b"),
    "cifar10-wrn20-8": (0.8, 0.8, 0.5, "1e"),
    "cifar10-resnet32-3": (0.8, 0.8, 0.5, "1e"),
    "cifar10-resnet32-4": (0.8, 0.8, 0.5, "5b"),
    "cifar10-vgg16-3": (0.8, 0.8, 0.5, "1e"),
    "cifar10-vgg16-4": (0.3, 0.3, 1.0, "1e"),
    "cifar100-resnet32": (1.0, 0.5, 1.0, "5b"),
    "cifar100-resnet110": (0.8, 0.8, 0.5, "5b"),
    "cifar100-vgg16": (0.3, 0.3, 1.0, "1e"),
    "cifar100-densenet40-12": (1.0, 0.5, 0.5, "5b"),
    "cifar100-wrn20-8": (0.5, 0.5, 0.5, "5b"),
    "cifar100-resnet32-3": (1.0, 0.5, 1.0, "5b"),
    "cifar100-resnet32-4": (1.0, 0.5, 1.0, "5b"),
    "cifar100-vgg16-3": (0.3, 0.3, 1.0, "3e"),
    "cifar100-vgg16-4": (0.3, 0.3, 1.0, "2e"),
    # table 7
    "cifar10-noisy-resnet32": (0.8, 0.8, 0.5, "5b"),
    "cifar10-noisy-vgg16": (0.3, 0.3, 1.0, "1e"),
    "cifar10-noisy-densenet40-12": (0.8, 0.8, 0.5, "5b"),
    "cifar10-10%-resnet32": (1.0, 0.5, 1.0, "5b"),
    "cifar10-10%-vgg16": (0.3, 0.3, 1.0, "1e"),
    "cifar10-10%-densenet40-12": (0.8, 0.8, 0.5, "5b"),
    "cifar10-1%-resnet32": (1.0, 0.5, 0.5, "5b"),
    "cifar10-1%-vgg16": (0.3, 0.3, 1.0, "1e"),
    "cifar10-1%-densenet40-12": (0.8, 0.8, 0.5, "5b"),
    "cifar100-noisy-resnet32": (1.0, 0.0, 0.5, "5b"),
    "cifar100-noisy-vgg16": (0.3, 0.3, 1.0, "1e"),
    "cifar100-noisy-densenet40-12": (1.0, 0.5, 0.5, "5b"),
    "cifar100-10%-resnet32": (0.5, 0.5, 1.0, "5b"),
    "cifar100-10%-vgg16": (0.3, 0.3, 1.0, "1e"),
    "cifar100-10%-densenet40-12": (1.0, 0.5, 0.5, "5b"),
    "cifar100-1%-resnet32": (1.0, 0.5, 0.5, "5b"),
    "cifar100-1%-vgg16": (0.8, 0.8, 1.0, "1e"),
    "cifar100-1%-densenet40-12": (0.8, 0.8, 0.5, "5b"),
}


def students(preset: str) -> int | None:
    """Return the number of students that a preset of OKDPH is for; None if its name has none."""
    last = preset.rpartition("-")[2]
    return int(last) if last in ("3", "4") else None


OKDPH: dict[str, dict[str, float | str | bool]] = {
    name: {"omega": omega, "beta": beta, "gamma": gamma, "every": every, "same_start": bool(name)}
    for name, (omega, beta, gamma, every) in _OKDPH.items()
}
