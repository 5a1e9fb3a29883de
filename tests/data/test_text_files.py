"""Texts as windows: each token's target is the next one, and no part has text of another."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe import InputError, data
from steppe.config import Data
from steppe.data.sources.formats.text import windows


@given(st.lists(st.integers(0, 9), min_size=1, max_size=80), st.integers(2, 9))
@settings(max_examples=50, deadline=None)
def test_windows_follow_each_other_and_each_target_is_the_next_token(tokens: list[int], length: int) -> None:
    samples = windows(torch.tensor(tokens), length)
    count = len(samples)
    assert count == max(0, (len(tokens) - 1) // length)
    expected = [
        (tokens[i * length : (i + 1) * length], tokens[i * length + 1 : (i + 1) * length + 1])
        for i in range(count)
    ]
    assert [(x.tolist(), y.tolist()) for x, y in zip(samples.x, samples.y, strict=True)] == expected


def decoded(part: torch.Tensor, characters: str) -> str:
    return "".join((characters + "\N{REPLACEMENT CHARACTER}")[i] for i in part.reshape(-1).tolist())


def test_validation_and_test_are_the_end_of_the_text_and_the_vocabulary_is_that_of_training(
    tmp_path: Path,
) -> None:
    text = "".join(chr(97 + i * i % 23) for i in range(1601)) + "ÄÖ" * 200
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    loaded = data.load(f"text:{tmp_path}/t.txt:length=10", Data(val=20))
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (160, 20, 20)
    characters = loaded.preparation["characters"]
    assert characters == "".join(sorted(set(text[:1601]))) and loaded.outputs == len(characters) + 1
    assert decoded(loaded.train.x, characters) == text[:1600]
    assert decoded(loaded.train.y, characters) == text[1:1601]
    assert (loaded.task, loaded.inputs) == ("language modelling", {"vocabulary": loaded.outputs, "length": 10})
    assert bool((loaded.val.y == len(characters)).all()) and bool((loaded.test.x == len(characters)).all())
    few = data.load(f"text:{tmp_path}/t.txt:length=10", Data(val=20, train=30, test=5))
    assert (len(few.train), len(few.test)) == (30, 5) and torch.equal(
        few.val.y, loaded.val.y * 0 + few.outputs - 1
    )
    raw = data.load(f"text:{tmp_path}/t.txt:length=10,by=bytes", Data(val=20))
    assert raw.outputs == 256 and bytes(raw.train.x.reshape(-1).tolist()) == text.encode()[: raw.train.x.numel()]
    assert raw.fingerprint != loaded.fingerprint


def test_a_folder_has_parts_or_one_text_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("bb" * 50)
    (tmp_path / "a.txt").write_text("aa" * 50, encoding="utf-8-sig", newline="\r\n")
    (tmp_path / ".hidden").write_text("hidden")
    (tmp_path / "c.png").write_bytes(b"\x89PNG\0")
    loaded = data.load(f"text:{tmp_path}:length=10", Data(val=1))
    assert loaded.preparation["characters"] == "\nab" and "2 files; left out: 1 .png files" in loaded.note
    for name, letter in (("train", "x"), ("valid", "y"), ("test", "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.txt").write_text(letter * 41)
    parts = data.load(f"text:{tmp_path}:length=10", Data())
    assert (len(parts.train), len(parts.val), len(parts.test), parts.outputs) == (4, 4, 4, 2)
    assert bool((parts.val.x == 1).all()) and not parts.test.x.any()
    assert "2 texts in no part (a.txt, b.md)" in parts.note


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", "write text:PATH"),
        ("text:nowhere", "there is no text nowhere"),
        ("text:{}/t.txt:length=1", "length is '1'; give the tokens of a window"),
        ("text:{}/t.txt:length=90", "has 100 tokens, too few for windows of 90"),
        ("text:{}/t.txt:by=words", "by is 'words' .*; give characters or bytes"),
        ("text:{}/t.bin", "is no text in UTF-8"),
        ("text:{}/nothing.txt", "nothing.txt is empty; give a text file"),
        ("text:{}/empty", "has no text files in UTF-8"),
        ("pydoc-text:by=bytes", "unknown option of data set pydoc-text 'by'"),
        ("pydoc-text:file", "pydoc-text has no files"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "t.txt").write_text("a" * 100)
    (tmp_path / "t.bin").write_bytes(b"\xff\xfe\xfa\0")
    (tmp_path / "nothing.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message) as caught:
        data.load(name.format(tmp_path), Data())
    assert "\n" not in str(caught.value)


def test_the_documentation_of_python_has_fixed_sizes_and_a_fingerprint() -> None:
    from pydoc_data.topics import topics

    loaded = data.load("pydoc-text", Data())
    assert (len(loaded.train), len(loaded.val), len(loaded.test), loaded.outputs) == (2531, 281, 312, 97)
    content = "\n\n".join(topics[name] for name in sorted(topics))[: 2531 * 128]
    known = "\n" + "".join(map(chr, range(32, 127)))
    assert decoded(loaded.train.x, known) == "".join(
        c if c in known else "\N{REPLACEMENT CHARACTER}" for c in content
    )
    assert len(loaded.fingerprint) == 16
