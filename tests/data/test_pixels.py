"""Pixels as files describe them: orientation, depth, transparency, long texts, size, damage, frames."""

import io
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, TiffImagePlugin, TiffTags
from PIL.PngImagePlugin import PngInfo
from support.photos import load

from steppe import InputError
from steppe.data.sources import pixels
from steppe.data.sources.pixels import decode_one, to_8_bits
from steppe.diagnostics.corruptions.published_sets import read_published

RAMP = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def decode(content: bytes, size: int | None = None) -> pixels.Decoded:
    with pixels.pillow_limits():
        image = decode_one("a", content, size)
    return to_8_bits([image])[0][0]


def folder(root: Path, *contents: bytes) -> Path:
    for i, content in enumerate(contents):
        path = root / ("cat" if i % 2 else "dog") / f"{i}.tif"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(kind: str, orientation: int) -> None:
    stored = np.random.default_rng(0).integers(0, 2, (2, 3)).repeat(16, 0).repeat(16, 1).astype(np.uint8) * 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(kind, {})
    image = decode(encode(Image.fromarray(stored).convert("RGB"), kind, exif=exif, **options))
    plain = Image.fromarray(stored)
    plain.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(plain))
    assert image.pixels is not None and image.pixels.shape[:2] == expected.shape
    assert np.abs(image.pixels[:, :, 0].astype(int) - expected).max() < 20
    assert image.remarks == (("turned",) if orientation > 1 else ())


def test_published_corrupted_images_are_upright_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    half = np.zeros((8, 8, 3), np.uint8)
    half[:4] = 255
    for name in ("cat", "dog"):
        path = tmp_path / "fog" / "1" / name / "a.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(encode(half, "JPEG", exif=exif))
    for channels in (1, 3):
        x = read_published(tmp_path, "fog", 1, ("cat", "dog"), 8, channels, 2).x.float()
        assert x.shape == (2, channels, 8, 8) and x[:, :, 5:].mean() > 250 and x[:, :, :3].mean() < 5


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("TIFF", RAMP), ("TIFF", RAMP * 2 - 1), ("TIFF", RAMP * 20 + 290),
        ("TIFF", (RAMP * 4095).astype(np.uint16)),
        ("TIFF", (RAMP * 2000 - 1000).astype(np.int32)), ("PNG", (RAMP * 65535).astype(np.uint16)),
        ("PNG", (RAMP * 255).astype(np.uint16)), ("PPM", (RAMP * 65535).astype(np.uint16)),
    ],
)  # fmt: skip
def test_deep_images_keep_their_grey_levels(kind: str, values: np.ndarray) -> None:
    image = decode(encode(values, kind))
    assert image.pixels is not None
    np.testing.assert_allclose(image.pixels[:, :, 0], 255 * RAMP, atol=1)


def test_equal_values_of_deep_images_stay_equal_between_files(tmp_path: Path) -> None:
    """The range is that of the data set, not of the file: 1000 is the same grey beside 2000 and beside 4000."""
    contents = [encode(np.full((12, 12), 1000, np.uint16), "TIFF") for _ in range(6)]
    contents += [
        encode(np.pad(np.full((6, 12), v, np.uint16), ((6, 0), (0, 0))), "TIFF") for v in (4000, 2000) * 3
    ]
    images = load(folder(tmp_path, *contents))
    everything = torch.cat([images.train.x, images.val.x, images.test.x])
    assert set(everything.unique().tolist()) == {0, 64, 128, 255}
    assert "12 of more than 8 bits, whose values 0 to 4000 become 0 to 255" in images.note


def test_values_that_are_not_numbers_do_not_set_the_range() -> None:
    values = RAMP.copy()
    values[0, 0], values[15, 15], values[3, 3] = np.nan, np.inf, -np.inf
    image = decode(encode(values, "TIFF"))
    assert image.pixels is not None and len(np.unique(image.pixels)) > 250 and image.pixels[0, 0] == 0


def test_the_value_of_pixels_without_data_does_not_set_the_range() -> None:
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    values[3, 3] = -9999
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[42113], tags.tagtype[42113] = "-9999", TiffTags.ASCII
    (image,), note = to_8_bits([decode_one("a", encode(values, "TIFF", tiffinfo=tags), None)])
    assert image.pixels is not None and len(np.unique(image.pixels)) == 255
    assert "whose values 0 to 1 become" in note


def drawing(colour: int, mode: str) -> Image.Image:
    rgba = np.full((8, 8, 4), colour, np.uint8)
    rgba[..., 3] = 0
    rgba[2:6, 2:6, 3] = 255
    image = Image.fromarray(rgba)
    if mode == "P":
        grey = image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
        grey.putdata([0 if a else 1 for a in rgba[..., 3].ravel()])
        grey.putpalette([colour] * 6)
        return grey
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize(("colour", "ground"), [(0, 128), (255, 128), (200, 128), (128, 255), (120, 255)])
def test_drawings_on_transparent_ground_stay_visible(mode: str, colour: int, ground: int) -> None:
    image = decode(encode(drawing(colour, mode), **({"transparency": 1} if mode == "P" else {})))
    assert image.pixels is not None and image.remarks == ("transparent",)
    assert (image.pixels[2:6, 2:6] == colour).all() and (image.pixels[0] == ground).all()


def test_opaque_images_with_transparency_and_print_colours_are_unchanged() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = decode(encode(Image.fromarray(rgb).convert("RGBA")))
    assert image.remarks == () and np.array_equal(image.pixels, rgb)
    for white in (0, 255):
        image = decode(encode(Image.new("CMYK", (8, 8), (white,) * 4), "TIFF"))
        assert image.pixels is not None and (image.pixels == 255 - white).all()


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_long_texts_and_colour_profiles_do_not_matter(compressed: bool, after: bool) -> None:
    texts = PngInfo()
    texts.add_text("workflow", "x" * (2**21 if compressed else 2**26), zip=compressed)
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    content = encode(grey, pnginfo=texts, icc_profile=bytes(2**21))
    if after:  # the chunks follow the pixels
        end = content.index(b"IDAT") - 4
        length = int.from_bytes(content[end : end + 4], "big") + 12
        content = content[:33] + content[end : end + length] + content[33:end] + content[end + length :]
    assert np.array_equal(decode(content).pixels, grey[:, :, None])


@pytest.mark.slow
def test_images_of_100_megapixels_are_read() -> None:
    image = Image.new("L", (10000, 10000), 77)
    for kind in ("JPEG", "PNG"):
        assert (decode(encode(image, kind), 32).pixels == 77).all()
    limit = Image.MAX_IMAGE_PIXELS
    content = encode(Image.new("1", (20000, 20000)), "PNG")
    assert decode(content, 32).reason == "more than 268,435,456 pixels" and limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF"])
def test_truncated_images_have_a_reason(kind: str) -> None:
    content = encode(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8), kind)
    image = decode(content[: len(content) * 2 // 3])
    assert image.pixels is None and image.reason and "\n" not in image.reason


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_of_several_frames_is_used_and_counted(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), (v, v, v)) for v in (10, 200, 90)]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    image = decode(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert (image.pixels == 10).all() and image.remarks == ("frames",)


def test_what_is_changed_in_decoding_is_in_the_note(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(Image.new("RGB", (12, 12)), "JPEG", exif=exif)
    clear, plain = encode(Image.new("RGBA", (12, 12))), encode(Image.new("RGB", (12, 12)))
    note = load(folder(tmp_path, *[turned, clear] * 3, *[plain] * 8)).note
    assert "3 turned upright by their EXIF orientation; 3 with transparent pixels, laid on grey (128)" in note


def test_a_missing_decoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pillow-heif the file is read through it."""
    heic = b"\0\0\0\x18ftypheic" + bytes(40)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    root = folder(tmp_path, *[encode(np.zeros((12, 12), np.uint8))] * 8)
    (root / "cat" / "a.heic").write_bytes(heic)
    with pytest.raises(InputError, match=r"cat/a.heic .*cannot be read \(HEIC needs pip install pillow-heif\)"):
        load(root)
    monkeypatch.setattr("PIL.features.check", lambda _: False)
    assert "AVIF needs" in decode(encode(np.zeros((12, 12), np.uint8), "AVIF")).reason
    called: list[bool] = []
    package = types.SimpleNamespace(register_heif_opener=lambda: called.append(True))
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    assert decode(heic).pixels is None and called
