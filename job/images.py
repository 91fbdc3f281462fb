"""A picture file of any size and colour becomes an image like the data set's: 28×28, grey, light on black."""

import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from job.data.arrays import SIDE
from job.errors import InputError

MOST_PIXELS = 50_000_000
"""Of a picture; some eight bytes each are held at a time."""
# All that Pillow's PNG and JPEG readers raise on damaged files.
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, OverflowError, struct.error, zlib.error)


@dataclass(frozen=True, slots=True)
class GreyImage:
    """An image that the model can take."""

    pixels: NDArray[np.uint8]
    """[28, 28]."""
    inverted: bool
    """Whether light and dark were exchanged, because the picture's border is light."""


def read_image(path: Path, *, invert: bool = True) -> GreyImage:
    """Read a PNG or JPEG file and make it what Fashion-MNIST's images are: grey, light on black, square, 28×28.

    The picture is turned as its camera noted, laid on a plain ground where it is transparent, and padded with the
    brightness of its border.

    Args:
        path: the file.
        invert: exchange light and dark where the border is light (its median above one half).

    Raises:
        InputError: it isn't a whole PNG or JPEG file, has more than `MOST_PIXELS`, or is thinner than 1:28.
    """
    if not path.is_file():
        raise InputError(f"no image file there: received {path}. Name PNG or JPEG files.")
    try:
        # A small file can claim a picture that fills the memory; it is refused before a pixel is read.
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            picture = Image.open(path, formats=("PNG", "JPEG"))
        with picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            ImageOps.exif_transpose(picture, in_place=True)
            grey = _grey(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{path} is too large: more than {MOST_PIXELS:,} pixels. Make it smaller.") from None
    except PermissionError:
        raise InputError(f"{path} can't be read: permission denied. Change its permissions.") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{path} is not a PNG or JPEG file. Convert it to one of them.") from None
    except _DAMAGE as error:
        raise InputError(f"{path} is a damaged image: {error}. Make it anew.") from error
    if max(grey.size) > SIDE * min(grey.size):
        raise InputError(f"{path} is too thin: received {grey.width}×{grey.height} pixels. Cut it nearer to a square.")
    ground = int(np.median(_border(np.asarray(grey))))
    inverted = invert and ground > 127
    if inverted:
        grey, ground = ImageOps.invert(grey), 255 - ground
    square = ImageOps.pad(grey, (SIDE, SIDE), Image.Resampling.LANCZOS, color=ground)
    return GreyImage(np.asarray(square, np.uint8), inverted)


def _grey(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        # Pillow cuts values above 255 off here instead of scaling them.
        wide = np.asarray(picture)
        grey = Image.fromarray((wide >> 8).astype(np.uint8))
        key = picture.info.get("transparency")
        alpha = None if key is None else Image.fromarray(np.where(wide == key, 0, 255).astype(np.uint8))
    elif picture.has_transparency_data:
        colours = picture.convert("RGBA")
        grey, alpha = colours.convert("L"), colours.getchannel("A")
        del colours  # four bytes a pixel
    else:
        grey, alpha = picture.convert("L"), None
    return grey if alpha is None else _on_ground(grey, alpha)


def _on_ground(grey: Image.Image, alpha: Image.Image) -> Image.Image:
    """A picture on the ground that the garment stands out from best, black or white, where it is transparent."""
    # Row by row: the whole would take eight times its memory.
    opacity = np.asarray(alpha)
    light = sum(int(row.astype(np.int64) @ part) for row, part in zip(np.asarray(grey), opacity, strict=True))
    light_ground = light <= 127 * int(opacity.sum(dtype=np.int64))
    return Image.composite(grey, Image.new("L", grey.size, 255 if light_ground else 0), alpha)


def _border(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
