"""One decoder for all images: upright, at full depth, opaque, first frame, within stated bounds."""

import os
import pickle
import threading

import numpy as np
import PIL
import pytest
from PIL import Image

from mamltheory.errors import DataError
from mamltheory.fewshot.datasets import load_data
from mamltheory.fewshot.formats import decoding
from mamltheory.fewshot.formats.decoding import SUFFIXES, rgb_image
from mamltheory.rng import numpy_generator
from tests.fewshot import layouts
from tests.fewshot.layouts import SPLITS, tiny_splits
from tests.fewshot.pictures import ROTATIONS, big_endian, half_transparent, phone_photo, saved


def pixels(raw, size=None):
    return np.asarray(rgb_image("a picture", raw, size)[0])


@pytest.mark.parametrize("orientation", ROTATIONS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_photos_are_turned_upright(orientation, kind):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :16] = 240
    got = pixels(phone_photo(upright, orientation, kind))
    assert got.shape == upright.shape
    assert abs(got.astype(int) - upright).max() <= (40 if kind == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_remarks_beside_a_picture_leave_it_as_it_is():
    image = np.full((4, 6, 3), 9, np.uint8)
    assert (pixels(saved(image, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")) == 9).all()


GREY = np.array([[0, 257, 40000], [65535, 128, 32768]], np.uint16)
EIGHT_BIT = np.rint(GREY / 257).astype(np.uint8)


@pytest.mark.parametrize(
    "raw",
    [
        saved(GREY, "PNG"),
        saved(GREY, "TIFF"),
        saved(GREY, "PPM"),
        saved(GREY, "JPEG2000"),
        saved(big_endian(GREY), "TIFF"),
        saved((GREY / 65535).astype(np.float32), "TIFF"),
        saved((GREY / 65535).astype(np.float32), "PPM"),
        saved(GREY, "TIFF", tiffinfo={262: 1}),
    ],
    ids=[
        "PNG",
        "TIFF",
        "PGM",
        "JPEG 2000",
        "big-endian TIFF",
        "float TIFF",
        "PFM",
        "TIFF with its photometry",
    ],
)
def test_deeper_images_are_scaled_and_not_clipped(raw):
    np.testing.assert_array_equal(pixels(raw), np.repeat(EIGHT_BIT[..., None], 3, 2))


def test_grey_values_of_ten_bits_and_of_white_as_zero_are_scaled_by_what_the_file_declares():
    ten = pixels(b"P5 2 1 1023\n" + np.array([1023, 512], ">u2").tobytes())
    assert ten[0, :, 0].tolist() == [255, 128]
    inverted = saved(GREY, "TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(pixels(inverted)[..., 0], 255 - EIGHT_BIT)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (saved(GREY.astype(np.int32), "TIFF"), "32-bit whole numbers: save it with 8 or 16 bits"),
        (saved(GREY.astype(np.float32), "TIFF"), "from 0 to 6.554e\\+04, and 0 to 1 are read"),
        (saved(np.full((2, 2), np.nan, np.float32), "TIFF"), "from nan to nan"),
    ],
)
def test_numbers_of_unknown_scale_are_refused(raw, message):
    with pytest.raises(DataError, match=message):
        pixels(raw)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("RGBA", kind) for kind in ("PNG", "WEBP", "TIFF", "TGA", "GIF", "AVIF", "JPEG2000")),
        *(("LA", kind) for kind in ("PNG", "TIFF", "TGA")),
        *(("P", kind) for kind in ("PNG", "WEBP")),
    ],
)
def test_what_is_transparent_shows_white(mode, kind):
    image = half_transparent()
    image = image.quantize(8) if mode == "P" else image.convert(mode)
    got = pixels(saved(image, kind, **({"lossless": True} if kind == "WEBP" else {}))).astype(int)
    assert (got[:4] == 255).all()
    expected = np.asarray(half_transparent().convert(mode if mode == "LA" else "RGB").convert("RGB"))[7, 0]
    assert abs(got[4:] - expected).max() <= 4


@pytest.mark.parametrize(
    "raw",
    [
        saved(np.array([[0, 255]], np.uint8), "PNG", transparency=0),
        saved(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), "PNG", transparency=0),
        saved(np.array([[0, 65535]], np.uint16), "PNG", transparency=0),
        saved(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8), "PNG", transparency=(0, 0, 0)),
    ],
    ids=["grey", "black and white", "16 bits", "colour"],
)
def test_one_transparent_colour_shows_white(raw):
    assert (pixels(raw) == 255).all()


def test_other_colour_spaces_are_converted():
    red = Image.new("RGB", (4, 4), (200, 30, 30))
    both = int(PIL.__version__.split(".")[0]) >= 13  # before, Pillow cannot read the YCbCr that it writes
    for mode in ("CMYK", "YCbCr") if both else ("CMYK",):
        assert abs(pixels(saved(red.convert(mode), "TIFF")).astype(int) - (200, 30, 30)).max() <= 2
    lab = Image.frombytes("LAB", (1, 1), bytes([255, 0, 0]))  # white
    assert pixels(saved(lab, "TIFF")).min() > 250


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_read_and_that_is_known(kind):
    first, second = (Image.new("RGB", (5, 5), (grey,) * 3) for grey in (10, 200))
    image, several = rgb_image("film", saved(first, kind, save_all=True, append_images=[second]))
    assert several
    assert np.asarray(image).max() <= 12
    assert not rgb_image("picture", saved(first, kind))[1]


def test_every_layout_with_encoded_images_goes_through_the_decoder(tmp_path, monkeypatch):
    asked, usual = [], decoding.Image.open
    monkeypatch.setattr(decoding.Image, "open", lambda *a, **k: asked.append(1) or usual(*a, **k))
    for name in ("image folder", "lists of images", "easyfsl specifications", "parquet files"):
        layouts.LAYOUTS[name](tmp_path / name, tiny_splits(2, 2))
        load_data(tmp_path / name)
    layouts.write_png(tmp_path / "tiered", tiny_splits(2, 2))
    load_data(tmp_path / "tiered")
    assert len(asked) >= 5 * 12


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.float64, bool])
@pytest.mark.parametrize("write", [layouts.write_category, layouts.write_cache, layouts.write_npz])
def test_arrays_of_another_depth_are_refused_and_not_clipped(tmp_path, dtype, write):
    class Deep:
        def __init__(self, split):
            self.images, self.labels = split.images.astype(dtype), split.labels
            self.class_names, self.members = split.class_names, split.members

    splits = {split: Deep(content) for split, content in tiny_splits(2, 2).items()}
    write(tmp_path, splits, dumps=pickle.dumps)
    with pytest.raises(DataError, match="expected a uint8 array"):
        load_data(tmp_path)


# --- bounds ---


@pytest.mark.parametrize(
    "raw",
    [
        layouts.png_of_declared_size(6000, 6000),
        b"P3 1000 1000 255\n" + b"7 " * 100,
        b"P6 1000 1000 254\n",
        saved(np.zeros((3000, 3000), np.uint8), "JPEG2000"),
        saved(np.zeros((9, 9, 3), np.uint8), "PNG") + bytes(2**20),
    ],
    ids=["many pixels", "numbers as text", "decoded in Python", "JPEG 2000", "a large file"],
)
def test_images_beyond_the_bounds_are_refused_before_they_are_decoded(raw, monkeypatch):
    monkeypatch.setattr(decoding, "MOST_BYTES", 2**20)
    monkeypatch.setattr(decoding, "_converted", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match=r"is refused: it has .* make it smaller"):
        pixels(raw, 84)


def test_a_progressive_image_of_very_many_passes_is_refused_and_a_usual_one_is_not(monkeypatch):
    monkeypatch.setattr(decoding, "MOST_PIXELS", 64 * 64)
    usual = saved(np.zeros((64, 64, 3), np.uint8), "JPEG", progressive=True)
    assert pixels(usual).shape == (64, 64, 3)
    last = usual[usual.rindex(b"\xff\xda") : -2]
    with pytest.raises(DataError, match="times"):
        pixels(usual[:-2] + 40 * last + b"\xff\xd9")


def test_a_very_large_photo_is_decoded_at_a_part_of_its_size_and_shows_the_same(monkeypatch):
    picture = np.kron(numpy_generator(0, "blocks").integers(0, 255, (8, 8, 3)), np.ones((64, 64, 1)))
    raw = saved(picture.astype(np.uint8), "JPEG", quality=95)
    whole = pixels(raw, 16)
    monkeypatch.setattr(decoding, "DRAFT_PIXELS", 2**12)
    part = pixels(raw, 16)
    assert whole.shape == (512, 512, 3)
    assert part.shape == (64, 64, 3)
    assert abs(part[4::8, 4::8].astype(int) - whole[32::64, 32::64]).max() < 12


def test_images_that_are_decoded_at_once_have_room_together(monkeypatch):
    monkeypatch.setattr(decoding, "_free", [100])
    held, order = threading.Event(), []

    def large():
        held.wait(5)
        with decoding._room(80):
            order.append("large")

    thread = threading.Thread(target=large)
    thread.start()
    with decoding._room(60):
        held.set()
        thread.join(0.1)
        order.append("first")
    thread.join(5)
    assert order == ["first", "large"]
    assert decoding._free == [100]


@pytest.mark.timeout(20)
def test_a_pipe_or_device_with_the_name_of_an_image_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    for place in (tmp_path / "x.png", "/dev/zero"):
        with pytest.raises(DataError, match="no regular file"):
            rgb_image("x.png", type(tmp_path)(place))
    layouts.write_csv(tmp_path / "lists", tiny_splits(2, 2))
    victim = sorted((tmp_path / "lists" / "images").iterdir())[1]
    victim.unlink()
    os.mkfifo(victim)
    with pytest.raises(DataError, match="no regular file"):
        load_data(tmp_path / "lists")


def test_the_suffixes_are_those_of_pictures_that_pillow_decodes_alone():
    assert {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"} <= set(
        SUFFIXES
    )
    assert not {".eps", ".ps", ".wmf", ".pdf", ".ico", ".h5", ".mpg"} & set(SUFFIXES)
    with pytest.raises(DataError, match="no known format"):
        pixels(saved(np.zeros((4, 4, 3), np.uint8), "EPS"))


def test_all_splits_of_a_folder_of_phone_photos_are_upright(tmp_path):
    upright = np.zeros((12, 12, 3), np.uint8)
    upright[:6] = 255
    for split in SPLITS:
        for turn in (1, 3, 6, 8):
            layouts.put(tmp_path / split / f"{split} class" / f"{turn}.png", phone_photo(upright, turn))
    for split in SPLITS:
        assert (getattr(load_data(tmp_path), split).images == upright).all()
