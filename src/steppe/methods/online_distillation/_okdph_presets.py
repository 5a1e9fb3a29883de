"""The hyper-parameters of OKDPH's supplement: tables 6 and 7 (Zhang et al., CVPR 2023, arXiv:2303.14666).

Each entry is omega, beta, gamma, every. Names are DATA-NETWORK, with the number of students if not two; noisy,
10% and 1% are the settings of table 7.
"""

from __future__ import annotations

Entry = tuple[float, float, float, str]

_SIX: dict[str, dict[str, Entry]] = {
    "cifar10": {
        "resnet32": (0.8, 0.8, 0.5, "1e"),
        "resnet110": (0.8, 0.8, 0.5, "5b"),
        "vgg16": (0.3, 0.3, 1.0, "1e"),
        "densenet40-12": (0.8, 0.8, 0.5, "5b"),
        "wrn20-8": (0.8, 0.8, 0.5, "1e"),
        "resnet32-3": (0.8, 0.8, 0.5, "1e"),
        "resnet32-4": (0.8, 0.8, 0.5, "5b"),
        "vgg16-3": (0.8, 0.8, 0.5, "1e"),
        "vgg16-4": (0.3, 0.3, 1.0, "1e"),
    },
    "cifar100": {
        "resnet32": (1.0, 0.5, 1.0, "5b"),
        "resnet110": (0.8, 0.8, 0.5, "5b"),
        "vgg16": (0.3, 0.3, 1.0, "1e"),
        "densenet40-12": (1.0, 0.5, 0.5, "5b"),
        "wrn20-8": (0.5, 0.5, 0.5, "5b"),
        "resnet32-3": (1.0, 0.5, 1.0, "5b"),
        "resnet32-4": (1.0, 0.5, 1.0, "5b"),
        "vgg16-3": (0.3, 0.3, 1.0, "3e"),
        "vgg16-4": (0.3, 0.3, 1.0, "2e"),
    },
}

_SEVEN: dict[str, dict[str, Entry]] = {
    "cifar10": {
        "noisy-resnet32": (0.8, 0.8, 0.5, "5b"),
        "noisy-vgg16": (0.3, 0.3, 1.0, "1e"),
        "noisy-densenet40-12": (0.8, 0.8, 0.5, "5b"),
        "10%-resnet32": (1.0, 0.5, 1.0, "5b"),
        "10%-vgg16": (0.3, 0.3, 1.0, "1e"),
        "10%-densenet40-12": (0.8, 0.8, 0.5, "5b"),
        "1%-resnet32": (1.0, 0.5, 0.5, "5b"),
        "1%-vgg16": (0.3, 0.3, 1.0, "1e"),
        "1%-densenet40-12": (0.8, 0.8, 0.5, "5b"),
    },
    "cifar100": {
        "noisy-resnet32": (1.0, 0.0, 0.5, "5b"),
        "noisy-vgg16": (0.3, 0.3, 1.0, "1e"),
        "noisy-densenet40-12": (1.0, 0.5, 0.5, "5b"),
        "10%-resnet32": (0.5, 0.5, 1.0, "5b"),
        "10%-vgg16": (0.3, 0.3, 1.0, "1e"),
        "10%-densenet40-12": (1.0, 0.5, 0.5, "5b"),
        "1%-resnet32": (1.0, 0.5, 0.5, "5b"),
        "1%-vgg16": (0.8, 0.8, 1.0, "1e"),
        "1%-densenet40-12": (0.8, 0.8, 0.5, "5b"),
    },
}

PRESETS: dict[str, Entry] = {
    f"{data}-{name}": entry
    for table in (_SIX, _SEVEN)
    for data, entries in table.items()
    for name, entry in entries.items()
}
