"""Small image folders and archives written to disk."""

import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from steppe import data
from steppe.config import Data


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (12, 12)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    return image if mode == "RGB" else image.convert(mode)


def class_folders(root: Path, classes: tuple[str, ...] = ("cat", "dog"), per_class: int = 10) -> Path:
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            picture(100 * c + i).save(root / name / f"{i:03d}.png")
    return root


def write(root: Path, files: Mapping[str, int | str | Sequence[str]]) -> Path:
    """Write this many images, or images of these names, into each folder, or a text into a file.

    Images are numbered over all folders.
    """
    number = 0
    for place, content in files.items():
        path = root / place
        if isinstance(content, str):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            continue
        names = [f"{number + i}.png" for i in range(content)] if isinstance(content, int) else content
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            picture(number).save(path / name, "PNG")
            number += 1
    return root


def load(path: Path, progress: Any = None, **options: Any) -> data.DataSet:
    return data.load(f"folder:{path}", Data(**{"val": 2, **options}), progress=progress)


def count(images: data.DataSet) -> int:
    return len(images.train) + len(images.val) + len(images.test)


def tar_of(root: Path, archive: Path, above: str = "") -> Path:
    """Pack everything below ``root``, folders and links too; names begin with ``above``."""
    mode: Any = {".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}.get(archive.suffix, "w:")
    with tarfile.open(archive, mode) as tar:
        for file in sorted(root.rglob("*")):
            tar.add(file, arcname=above + file.relative_to(root).as_posix(), recursive=False)
    return archive
