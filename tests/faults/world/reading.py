"""Writes a drawn layout as a folder or an archive, reads it, and compares each image's part and class."""

import os
import random
import re
import stat
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from faults.outcome import Case, Where, compared
from faults.world.layouts import Generator, Layout

PACKED = ("", "", "", ".tar", ".tar.gz", ".tgz", ".zip", ".zip", ".tar.bz2", ".TAR")


def situation(name: str, r: random.Random, where: Where) -> Case:
    """Draw a layout, write it, read it and judge what was read."""
    layout = Generator(r).drawn()
    root = where.scratch / name.replace(" ", "-")
    ending = r.choice(PACKED)
    path = written(layout, root, ending, with_folders=r.random() < 0.5 or bool(layout.folders))
    return judged(f"{name}: {', '.join(layout.chosen)}{ending}", layout, path)


def judged(name: str, layout: Layout, path: Path) -> Case:
    from steppe.config import Data
    from steppe.data.sources import image_folder
    from steppe.errors import InputError

    try:
        source = image_folder.load(path, Data(skip_corrupt=layout.skip_corrupt))
    except InputError as error:
        message = str(error)
        if "\n" in message or not layout.refused:
            return Case(name, "traceback" if "\n" in message else "lost", f"refused: {message[:300]}")
        return Case(name, "held")
    except Exception as error:
        return Case(name, "traceback", f"{type(error).__name__}: {error}"[:200])
    if layout.refused:
        return Case(name, "lost", f"accepted: {source.note}")
    return compared(name, difference(layout, source))


def difference(layout: Layout, source: object) -> str | None:
    """Say in what the images that were read differ from those that were written, None if in nothing."""
    merged = any(label and label[0] == "any" for label in layout.label.values())
    expected = Counter(
        (label, nearest(layout.colour[path])) for path, label in layout.label.items() if label is not None
    )
    actual: Counter[object] = Counter()
    for part in ("train", "val", "test"):
        images = getattr(source, part)
        for x, y in zip(images.x.numpy(), images.y.tolist(), strict=True) if images is not None else ():
            label = ("any" if merged else part, source.classes[y])
            actual[label, nearest(np.median(x.reshape(3, -1), axis=1))] += 1
    if actual != expected:
        return f"{sorted((actual - expected).items())[:2]} for {sorted((expected - actual).items())[:2]}"
    if merged and not len(source.test):
        return "no test images"
    left = sum(label is None for label in layout.label.values())
    for what, pattern, count in (
        ("images without a class", r"(\d+) images without a class", left),
        ("of the system", r"(\d+) of the system", layout.system),
        ("other files", r"(\d+) (?:\.\w+|extensionless) files?\b", layout.others),
    ):
        noted = sum(map(int, re.findall(pattern, source.note)))
        if noted != count:
            return f"{noted} {what} for {count}: {source.note}"
    if len(source.skipped) != layout.skipped:
        return f"{len(source.skipped)} skipped for {layout.skipped}"
    return None


def nearest(colour: object) -> tuple[int, int, int]:
    """Return the colour of a layout nearest to this one: lossy formats change it a little."""
    r, g, b = (float(value) for value in colour)
    return round((r - 30) / 60) if r > 15 else -1, round((g - 20) / 50), round(b / 3)


def written(layout: Layout, root: Path, ending: str, *, with_folders: bool) -> Path:
    """Write a layout as a folder, or as an archive for an ending; folders are entries of it if told so."""
    for folder in layout.folders:
        (root / folder).mkdir(parents=True)
    for name, content in layout.files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    for link, target in layout.links.items():
        (root / link).symlink_to(os.path.relpath(root / target, (root / link).parent))
    for link, target in layout.hard.items():
        os.link(root / target, root / link)
    if not ending:
        return root
    archive = root.with_name(root.name + ending)
    files = [f for f in sorted(root.rglob("*")) if with_folders or f.is_symlink() or not f.is_dir()]
    if ending == ".zip":
        _zip(archive, root, files)
        return archive
    mode = {".tar": "w:", ".bz2": "w:bz2"}.get(archive.suffix.lower(), "w:gz")
    with tarfile.open(archive, mode) as tar:
        for file in files:
            tar.add(file, arcname=f"./{file.relative_to(root)}", recursive=False)
    return archive


def _zip(archive: Path, root: Path, files: list[Path]) -> None:
    with zipfile.ZipFile(archive, "w") as packed:
        for file in files:
            if file.is_symlink():
                info = zipfile.ZipInfo(str(file.relative_to(root)))
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                packed.writestr(info, os.readlink(file))
            else:
                packed.write(file, str(file.relative_to(root)))
