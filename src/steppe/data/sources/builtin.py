"""Data sets without files: digits, tables of scikit-learn, Python's documentation, and noise for measurements."""

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steppe.config import Data
from steppe.data.dataset import Images, Source, resized
from steppe.data.sources.formats import text
from steppe.data.sources.formats.table import Feature, table_source
from steppe.data.sources.formats.targets import Target
from steppe.data.splits import split_off_test
from steppe.errors import InputError

_DIGITS_SIZE = 24  # a multiple of 8; three unpadded convolutions and two poolings need at least 18 pixels
_CHARACTERS = 400_000  # of Python's documentation; each version from 3.11 has more
TABLES = ("diabetes", "breast-cancer", "wine")


def digits(options: Data, settings: Mapping[str, str]) -> Source:
    """Return 1,797 real handwritten digits (8x8, 17 grey levels) from scikit-learn, upscaled to 24x24.

    A fixed share of every class, a fifth if the setting ``test`` is not given, is the test set, because the data
    set has none.

    Raises InputError unless ``test`` is a share between 0 and 1.
    """
    text_share = settings.get("test", "0.2")
    try:
        share = float(text_share)
    except ValueError:
        share = 0.0
    if not 0.01 <= share <= 0.95:
        raise InputError(
            f"test is {text_share!r}; give the share of the digits that is the test set, 0.01 to 0.95"
        )
    try:
        table = _scikit_learn_file("digits.csv.gz", ",")
    except OSError:  # this version keeps the file elsewhere
        from sklearn.datasets import load_digits

        table = np.column_stack(load_digits(return_X_y=True))
    pixels, y = table[:, :-1], table[:, -1].astype(np.int64)
    x = (pixels.reshape(-1, 1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    x = resized(x, options.size or _DIGITS_SIZE)
    train, test = split_off_test(Images(torch.from_numpy(x), torch.from_numpy(y)), share)
    part = "a fixed fifth" if share == 0.2 else f"fixed {100 * share:g} %"
    note = f"test images: {part} of every class, as the data set comes without a test set"
    return Source(train, test, tuple("0123456789"), note=note)


def _scikit_learn_file(name: str, delimiter: str | None = None) -> np.ndarray:
    """Return a file of numbers that comes with scikit-learn, whose import would take a second."""
    spec = find_spec("sklearn")
    assert spec is not None
    return np.loadtxt(Path(str(spec.origin)).parent / "datasets/data" / name, delimiter=delimiter)


def table(name: str) -> Source:
    """Return one of scikit-learn's tables; a fixed fifth of the rows, of every class, is the test set.

    ``diabetes``: 442 patients, 10 features in their units, to predict a quantitative measure of the progression of
    the disease after one year (25 to 346). ``breast-cancer``: 569 tumours, 30 features, 2 classes. ``wine``: 178
    wines, 13 features, 3 classes.
    """
    if name == "diabetes":
        try:
            x, y = (_scikit_learn_file(f"diabetes_{part}.csv.gz") for part in ("data_raw", "target"))
        except OSError:
            from sklearn.datasets import load_diabetes

            x, y = load_diabetes(return_X_y=True, scaled=False)
        titles: tuple[str, ...] = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
        target = Target("regression", y.astype(np.float32)[:, None], np.arange(len(y)), (), 1, "points")
    else:
        from sklearn import datasets

        load = {"breast-cancer": datasets.load_breast_cancer, "wine": datasets.load_wine}[name]
        bunch: Any = load()
        x, y, titles = bunch.data, bunch.target, tuple(map(str, bunch.feature_names))
        classes = tuple(map(str, bunch.target_names))
        target = Target("classification", y.astype(np.int64), np.arange(len(y)), classes)
    features = [Feature(title, x[:, i].astype(float)) for i, title in enumerate(titles)]
    title = "disease progression" if name == "diabetes" else "class"
    return table_source(features, target, np.full(len(y), "train"), [title], [])


def pydoc_text(options: Mapping[str, str]) -> Source:
    """Return the first 400,000 characters of the documentation that Python ships for ``help``, as windows.

    Topics follow each other by name; the last tenth is the test part. Tokens are the newline and the 95 printable
    characters of ASCII, and one for all others, so that networks have one size under every version of Python. The
    text differs between versions, and so does the fingerprint.

    Raises InputError if Python was installed without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise InputError(
            "data set pydoc-text needs Python's module pydoc_data, which is not installed; give text:PATH"
        ) from None
    content = "\n\n".join(topics[name] for name in sorted(topics))[:_CHARACTERS]
    codes = np.frombuffer(content.encode("utf-32-le"), np.uint32).astype(np.int64)
    tokens = np.where(codes == 10, 0, np.where((codes >= 32) & (codes < 127), codes - 31, 96))
    mark = hashlib.sha256(content.encode()).hexdigest()[:16]
    length = text.window_length(options)
    characters = "\n" + "".join(map(chr, range(32, 127)))
    numbered = 97, {"characters": characters, "other": 96}
    return text.windows_source({"train": torch.from_numpy(tokens)}, length, "pydoc-text", [], mark, numbered)


def synthetic(options: Data) -> Source:
    """Return noise with random labels of 10 classes, 5,000 training and 1,000 test images, to measure speed."""
    rng = np.random.default_rng(0)
    size = options.size or 32

    def images(count: int) -> Images:
        x = rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8)
        return Images(torch.from_numpy(x), torch.from_numpy(rng.integers(0, 10, count)))

    note = "noise with random labels: accuracies mean nothing"
    return Source(images(5000), images(1000), tuple("0123456789"), note=note)
