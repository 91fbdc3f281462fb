"""Pictures of any kind become images like the data set's."""

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from job.data import garments
from job.errors import InputError
from job.images import read_image

GARMENT = Image.fromarray(garments.draw(train=10, test=10).test_images[3])


def encoded(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    picture.save(data, form, **options)
    return data.getvalue()


@pytest.fixture
def written(tmp_path):
    """Writes a picture (or bytes) to a file and returns its path."""

    def write(picture, form="PNG", **options):
        path = tmp_path / f"picture.{form.lower()}"
        path.write_bytes(picture if isinstance(picture, bytes) else encoded(picture, form, **options))
        return path

    return write


def difference(image, picture=GARMENT):
    """Mean absolute difference of grey levels."""
    return np.abs(image.pixels.astype(int) - np.asarray(picture, int)).mean()


def test_an_image_of_the_data_set_stays_as_it_is(written):
    image = read_image(written(GARMENT))
    assert difference(image) == 0
    assert image.pixels.dtype == np.uint8
    assert not image.inverted


def test_dark_on_light_is_inverted_unless_it_must_not_be(written):
    path = written(Image.eval(GARMENT, lambda value: 255 - value))
    assert read_image(path).inverted
    assert difference(read_image(path)) == 0
    assert not read_image(path, invert=False).inverted
    assert difference(read_image(path, invert=False), Image.open(path)) == 0


@pytest.mark.parametrize(
    ("mode", "form"),
    [("L", "JPEG"), ("RGB", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG")],
)
def test_colour_modes_and_large_sizes_show_the_same_garment(written, mode, form):
    large = GARMENT.resize((560, 560), Image.Resampling.NEAREST).convert("RGB").convert(mode)
    assert difference(read_image(written(large, form))) < 4


def test_sixteen_bits_are_scaled_and_one_bit_is_read(written):
    deep = Image.fromarray(np.asarray(GARMENT).astype(np.uint16) * 257)
    assert difference(read_image(written(deep))) == 0
    flat = GARMENT.convert("1", dither=Image.Dither.NONE)
    assert set(np.unique(read_image(written(flat)).pixels)) == {0, 255}


@pytest.mark.parametrize(("brightness", "inverted"), [(230, False), (20, True)])
def test_a_garment_on_a_transparent_ground_stands_out_light(written, brightness, inverted):
    picture = Image.new("RGBA", (100, 100), (255, 255, 255, 0))
    picture.paste((brightness,) * 3 + (255,), (30, 30, 70, 70))
    image = read_image(written(picture))
    assert image.inverted is inverted
    assert image.pixels[14, 14] > 200
    assert image.pixels[0, 0] == 0


@pytest.mark.parametrize("deep", [False, True])
def test_a_colour_that_stands_for_transparent_is_no_ground(written, deep):
    pixels = np.full((100, 100), 255, np.uint16)
    pixels[30:70, 30:70] = 234  # on white, which a light garment would not stand out from
    picture = Image.fromarray(pixels * 257 if deep else pixels.astype(np.uint8))
    image = read_image(written(picture, transparency=0xFFFF if deep else 0xFF))
    assert not image.inverted and image.pixels[0, 0] == 0 and abs(int(image.pixels[14, 14]) - 234) <= 1


def test_a_wholly_transparent_picture_is_black(written):
    assert read_image(written(Image.new("RGBA", (50, 50), (9, 9, 9, 0)))).pixels.max() == 0


def test_the_aspect_is_kept_and_the_rest_padded_with_the_border(written):
    picture = Image.new("L", (50, 200), 250)
    picture.paste(0, (20, 20, 30, 180))
    image = read_image(written(picture))
    assert image.inverted
    assert np.all(image.pixels[:, :10] == 5)
    assert np.all(image.pixels[:, 18:] == 5)
    assert np.all(image.pixels[4:24, 13:15].mean(axis=1) > 100)


def test_a_camera_s_turn_is_undone(written):
    turned = GARMENT.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert difference(read_image(written(turned, "JPEG", exif=exif, quality=100, subsampling=0))) < 2


def png(width, height, pixels=b""):
    """A PNG file that claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [7_100, 9_500, 60_000])
def test_a_small_file_that_claims_a_huge_picture_takes_no_memory(written, side):
    path = written(png(side, side))
    tracemalloc.start()
    with pytest.raises(InputError, match="too large"):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_small_file_that_is_a_large_picture_takes_a_few_bytes_a_pixel(written):
    picture = Image.new("P", (7_000, 7_000))
    picture.putpalette([0, 0, 0, 255, 255, 255])
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=0, bits=1)
    assert file.tell() < 10_000
    script = "import sys; from pathlib import Path; from job.images import read_image; read_image(Path(sys.argv[1])); "
    script += "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    done = subprocess.run([sys.executable, "-c", script, written(file.getvalue())], capture_output=True, check=True)
    assert int(done.stdout) < 600 * 1024


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a PNG or JPEG"),
        (b"GIF89a" + bytes(50), "not a PNG or JPEG"),
        (b"<svg xmlns='...'/>", "not a PNG or JPEG"),
        (encoded(GARMENT)[:200], "damaged"),
        (encoded(GARMENT, "JPEG")[:400], "damaged"),
        (png(28, 28, b"few"), "damaged"),
        (encoded(Image.new("L", (3, 300))), "too thin: received 3×300"),
    ],
)
def test_what_is_no_whole_picture_is_named(written, content, said):
    path = written(content)
    with pytest.raises(InputError, match=said) as refusal:
        read_image(path)
    assert str(path) in str(refusal.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path, tmp_path / "none.png"):
        with pytest.raises(InputError, match=str(path)):
            read_image(path)


VALID = [
    encoded(GARMENT),
    encoded(GARMENT.convert("P")),
    encoded(GARMENT.convert("RGBA")),
    encoded(GARMENT, "JPEG"),
    encoded(GARMENT.convert("RGB"), "JPEG", progressive=True, exif=Image.Exif()),
]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8),
    st.integers(0, 2000) | st.none(),
)
def test_whatever_bytes_there_are_it_is_an_image_or_a_refusal(written, valid, changes, end):
    data = bytearray(valid[:end])
    for place, value in changes:
        if data:
            data[place % len(data)] = value
    try:
        image = read_image(written(bytes(data)))
    except InputError:
        return
    assert image.pixels.shape == (28, 28)
