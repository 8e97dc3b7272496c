"""Pictures of every kind read back against pixels known in advance; each mistake answered in one line."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from torch import Tensor

from noising.data.image_data import Splits
from noising.data.image_folder import ImageFolder
from noising.data.pictures import FORMATS, eight_bits
from noising.errors import ConfigError
from noising.experiment import Experiment
from tests.helpers import composed


def only(path: Path, resolution: int, channels: int = 3, crop: bool = True) -> Tensor:
    """The one image as the set decodes it: (channels, resolution, resolution)."""
    data = ImageFolder(1, str(path.parent), resolution, channels, crop)
    return torch.from_numpy(data.pictures.decode(path).copy()).permute(2, 0, 1)


def fill(root: Path, count: int, side: int = 4, folders: tuple[str, ...] = (".",)) -> None:
    """PNGs whose grey says which they are."""
    for number in range(count):
        folder = root / folders[number % len(folders)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (side, side), number).save(folder / f"{number:03}.png")


def test_grey_and_colour_become_one_another(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    Image.new("RGB", (4, 4), (200, 100, 50)).save(tmp_path / "colour.png")
    assert torch.equal(only(tmp_path / "grey.png", 4), torch.full((3, 4, 4), 77, dtype=torch.uint8))
    assert only(tmp_path / "colour.png", 4)[:, 0, 0].tolist() == [200, 100, 50]
    luma = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert torch.equal(only(tmp_path / "colour.png", 4, channels=1), torch.full((1, 4, 4), luma, dtype=torch.uint8))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 100, 255, 128)).save(tmp_path / "half.png")
    half = [round(255 + (c - 255) * 128 / 255) for c in (0, 100, 255)]
    assert (only(tmp_path / "half.png", 4)[:, 0, 0].long() - torch.tensor(half)).abs().max() <= 1
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "clear.png")
    assert (only(tmp_path / "clear.png", 4) == 255).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 10, 20, 30])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "palette.png", transparency=0)
    assert only(tmp_path / "palette.png", 4)[:, 0, :2].tolist() == [[255, 10], [255, 20], [255, 30]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_rounded_and_not_clipped(suffix: str, tmp_path: Path) -> None:
    values = np.array([[0, 257, 257 * 128], [128, 129, 65535], [300, 40000, 65534]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    assert only(tmp_path / f"deep.{suffix}", 3, channels=1)[0].tolist() == [
        [0, 1, 128],
        [0, 1, 255],
        [1, 156, 255],
    ]


@pytest.mark.parametrize("plain", [False, True], ids=["bytes", "digits"])
@pytest.mark.parametrize("most", [1023, 4095, 65535])
def test_a_portable_map_is_scaled_by_its_greatest_value(most: int, plain: bool, tmp_path: Path) -> None:
    values = [0, 1, most // 3, 77 * 257 * most // 65535, most - 1, most] * 2
    for name, magic, size in (
        ("grey.pgm", "P2" if plain else "P5", "4 3"),
        ("colour.ppm", "P3" if plain else "P6", "2 2"),
    ):
        data = " ".join(map(str, values)).encode() if plain else np.array(values, dtype=">u2").tobytes()
        (tmp_path / name).write_bytes(f"{magic}\n{size}\n{most}\n".encode() + data)
    expected = [round(255 * value / most) for value in values]
    assert _pixels(tmp_path / "grey.pgm", "L") == expected
    assert _pixels(tmp_path / "colour.ppm", "RGB") == expected


def _pixels(path: Path, mode: str = "RGB") -> list[int]:
    """All values of an image in 8 bits, before it is cropped and resized."""
    with Image.open(path) as opened:
        return np.asarray(eight_bits(opened).convert(mode)).ravel().tolist()


def _png(path: Path, bits: int, colour: int, row: bytes, transparent: bytes = b"", width: int = 2) -> Path:
    """A PNG of one row, by its specification; colour: 0 grey, 2 colour, 4 grey with alpha."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0))
    clear = chunk(b"tRNS", transparent) if transparent else b""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + clear + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize(
    ("bits", "row", "transparent", "expected"),
    [
        (16, struct.pack(">2H", 77 * 257, 1000), 1000, [77, 255]),
        (16, struct.pack(">2H", 1001, 1000), 1000, [4, 255]),  # the whole value is compared
        (8, bytes([77, 4]), 4, [77, 255]),
        (4, b"\x53", 3, [5 * 17, 255]),
        (2, b"\x60", 2, [85, 255]),
        (1, b"\x40", 0, [255, 255]),
        (1, b"\x40", 1, [0, 255]),
    ],
)
def test_a_transparent_grey_is_laid_on_white(
    bits: int, row: bytes, transparent: int, expected: list[int], tmp_path: Path
) -> None:
    assert _pixels(_png(tmp_path / "x.png", bits, 0, row, struct.pack(">H", transparent)), "L") == expected


def test_deep_colour_and_its_transparency(tmp_path: Path) -> None:
    colours = struct.pack(">6H", 257, 514, 771, 0, 65535, 1000)
    assert _pixels(_png(tmp_path / "colour.png", 16, 2, colours)) == [1, 2, 3, 0, 255, 3]
    assert _pixels(_png(tmp_path / "alpha.png", 16, 4, struct.pack(">4H", 77 * 257, 65535, 0, 0)), "L") == [77, 255]
    assert _pixels(_png(tmp_path / "clear.png", 8, 2, bytes([1, 2, 3, 4, 5, 6]), struct.pack(">3H", 4, 5, 6))) == [
        *(1, 2, 3),
        *(255, 255, 255),
    ]
    path = _png(tmp_path / "deep.png", 16, 2, colours, struct.pack(">3H", 257, 514, 771))
    with pytest.raises(ValueError, match=r"deep\.png: 16-bit colour with a transparent colour: save it with an alpha"):
        only(path, 1)


def _tiff(path: Path, order: str, data: bytes, bits: tuple[int, ...], photometric: int, **tags: int) -> Path:
    """A TIFF of one row of two pixels, by its specification; order: `<` little-endian, `>` big-endian."""
    entries = [(256, 2), (257, 1), (259, 1), (262, photometric), (277, len(bits)), (278, 1)]
    entries += [(339, tags["sample_format"])] if "sample_format" in tags else []
    entries += [(338, tags["extra"])] if "extra" in tags else []
    count = len(entries) + 3
    end = 8 + 2 + 12 * count + 4
    packed = struct.pack(f"{order}{len(bits)}H", *bits)
    whole = [(tag, 3, 1, struct.pack(f"{order}HH", value, 0)) for tag, value in entries]
    whole.append((258, 3, len(bits), packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(f"{order}I", end)))
    whole.append((273, 4, 1, struct.pack(f"{order}I", end + len(packed))))
    whole.append((279, 4, 1, struct.pack(f"{order}I", len(data))))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, count)
    lines = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in sorted(whole))
    path.write_bytes(head + lines + bytes(4) + packed + data)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiffs_of_either_byte_order(order: str, tmp_path: Path) -> None:
    deep = struct.pack(f"{order}2H", 77 * 257, 65535)
    x = tmp_path / "x.tif"
    assert _pixels(_tiff(x, order, deep, (16,), 1), "L") == [77, 255]
    assert _pixels(_tiff(x, order, bytes([77, 255]), (8,), 0), "L") == [178, 0]  # white is zero
    assert _pixels(_tiff(x, order, struct.pack(f"{order}6H", *(257 * v for v in range(6))), (16,) * 3, 2)) == [
        *range(6)
    ]
    assert _pixels(_tiff(x, order, bytes([50, 128, 9, 255]), (8, 8), 1, extra=1), "L") == [177, 9]  # 50 + 255 - 128
    assert _pixels(_tiff(x, order, bytes([50, 0, 9, 255]), (8, 8), 1, extra=2), "L") == [255, 9]
    if order == "<":  # Pillow reads no others of these kinds
        assert _pixels(_tiff(x, order, deep, (16,), 0), "L") == [178, 0]
        assert _pixels(_tiff(x, order, bytes([0x80, 0x0F, 0xFF]), (12,), 1), "L") == [128, 255]  # 0x800, 0xfff
    for bits in (8, 16, 32):
        with pytest.raises(ValueError, match=r"x\.tif: signed grey has no known range: save it with 8 or 16 unsigned"):
            only(_tiff(x, order, bytes(2 * bits // 8), (bits,), 1, sample_format=2), 1)


def test_every_mode_that_a_format_holds(tmp_path: Path) -> None:
    for image, expected in (
        (Image.new("1", (1, 1), 1), [255, 255, 255]),
        (Image.new("L", (1, 1), 7), [7, 7, 7]),
        (Image.new("CMYK", (1, 1), (255, 0, 0, 0)), [0, 255, 255]),
        (Image.new("YCbCr", (1, 1), (77, 128, 128)), [77, 77, 77]),
    ):
        image.save(tmp_path / "x.tif")
        assert _pixels(tmp_path / "x.tif") == expected, image.mode
    indexed = Image.new("P", (2, 1), 1)
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    indexed.putpixel((0, 0), 0)
    indexed.save(tmp_path / "x.png", transparency=bytes([0, 255]))
    assert _pixels(tmp_path / "x.png") == [255, 255, 255, 40, 50, 60]
    lab = _tiff(tmp_path / "lab.tif", "<", bytes([255, 0, 0, 138, 81, 70]), (8, 8, 8), 8)  # white, and sRGB red in D50
    assert _pixels(lab) == pytest.approx([255, 255, 255, 255, 0, 0], abs=5)
    assert _pixels(lab, "L") == pytest.approx([255, 76], abs=3)


def test_lossy_formats_keep_the_colour(tmp_path: Path) -> None:
    for name, options in (
        ("a.jpg", {"quality": 95}),
        ("b.webp", {"lossless": True}),
        ("c.JPEG", {}),
        ("d.bmp", {}),
        ("e.gif", {}),
    ):
        Image.new("RGB", (16, 16), (180, 90, 40)).save(tmp_path / name, **options)
        difference = only(tmp_path / name, 8).long() - torch.tensor([180, 90, 40])[:, None, None]
        assert difference.abs().max() <= 3, name


def test_cmyk_is_read_as_colour(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.tif")
    assert only(tmp_path / "red.tif", 8)[:, 0, 0].tolist() == [255, 0, 0]


def test_the_central_square_is_cut_and_averaged(tmp_path: Path) -> None:
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, 4:12] = 200  # exactly the central square
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (only(tmp_path / "wide.png", 4) == 200).all()
    stripes = np.zeros((32, 32), dtype=np.uint8)
    stripes[:, ::2] = 255  # finer than the result can show: it must become grey, not stripes
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    assert (only(tmp_path / "stripes.png", 4, channels=1)[:, :, 1:-1].long() - 128).abs().max() <= 3
    with pytest.raises(ValueError, match=r"^data\.crop=false needs square images, but .*wide\.png is 16x8$"):
        only(tmp_path / "wide.png", 4, crop=False)


def test_a_cameras_rotation_is_obeyed(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[10, 20], [30, 40]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    assert only(tmp_path / "turned.png", 2, channels=1)[0].tolist() == [[30, 10], [40, 20]]


def test_the_split_is_a_hash_of_the_path_and_covers_the_folder(tmp_path: Path) -> None:
    fill(tmp_path, 200, folders=("cats", "dogs/old", "dogs/new"))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "cats" / "._000.png").write_bytes(b"a system's own")
    data = ImageFolder(8, str(tmp_path), 4, channels=1, labels=True, val_fraction=0.2, test_fraction=0.2)
    data.setup()
    splits = (data.train, data.val, data.test)
    numbers = [set(split.pixels[:, 0, 0, 0].tolist()) for split in splits]
    assert sum(len(part) for part in numbers) == 200 == len(set.union(*numbers))
    for name, folder in ((f"{n:03}.png", ("cats", "dogs/old", "dogs/new")[n % 3]) for n in range(200)):
        first = int(hashlib.sha256(f"{folder}/{name}".encode()).hexdigest()[:16], 16) / 2**64
        assert int(name[:3]) in numbers[2 if first < 0.2 else 1 if first < 0.4 else 0]
    assert data.classes == 2
    for split in splits:
        assert split.labels is not None
        assert torch.equal(split.labels == 0, split.pixels[:, 0, 0, 0] % 3 == 0)
    assert (data.channels, data.resolution, data.levels) == (1, 4, 256)

    fill(tmp_path, 230, folders=("cats", "dogs/old", "dogs/new"))  # thirty more: nobody moves
    more = ImageFolder(8, str(tmp_path), 4, channels=1, val_fraction=0.2, test_fraction=0.2)
    more.setup()
    for before, split in zip(numbers, (more.train, more.val, more.test), strict=True):
        assert before == {n for n in split.pixels[:, 0, 0, 0].tolist() if n < 200}
    assert (more.classes, more.train.labels) == (0, None)


def test_every_mistake_is_one_line_that_names_its_cure(tmp_path: Path) -> None:
    empty, full, broken, loose = (tmp_path / name for name in ("empty", "full", "broken", "loose"))
    (empty / "inner").mkdir(parents=True)
    fill(full, 60)
    fill(broken, 60)
    fill(loose, 60, folders=("a", "."))
    cut = (broken / "017.png").read_bytes()[:40]
    (broken / "017.png").write_bytes(cut)
    (empty / "inner" / "notes.txt").write_text("not an image")
    mistakes: list[tuple[str, dict[str, Any]]] = [
        (f"data.root={tmp_path / 'none'} does not exist", {"root": tmp_path / "none"}),
        (f"data.root={full / '000.png'} is not a folder", {"root": full / "000.png"}),
        (f"data.root={empty} has no image in it or in its sub-folders", {"root": empty}),
        (f"data.root: cannot read {broken / '017.png'}: ", {"root": broken}),
        (
            f"data.labels=true needs sub-folders, but {loose / '001.png'} is in none",
            {"root": loose, "labels": True},
        ),
        ("data.test_fraction=1e-09 takes none of the 60 images: raise it", {"test_fraction": 1e-9}),
        ("data.val_fraction=1e-09 takes none of the 60 images: raise it", {"val_fraction": 1e-9}),
        ("batch_size must be at least 1, got 0", {"batch_size": 0}),
        ("resolution must be at least 1, got 0", {"resolution": 0}),
        ("channels must be 1 (grey) or 3 (colour), got 4", {"channels": 4}),
        ("val_fraction must lie between 0 and 1, got 0.0", {"val_fraction": 0.0}),
        (
            "val_fraction + test_fraction must be below 1, got 1.25",
            {"val_fraction": 0.5, "test_fraction": 0.75},
        ),
    ]
    for message, arguments in mistakes:
        given: dict[str, Any] = {"batch_size": 4, "root": full, "resolution": 4} | arguments
        with pytest.raises(ValueError) as caught:
            ImageFolder(**given).setup()
        assert str(caught.value).startswith(message), str(caught.value)
        assert "\n" not in str(caught.value)


def test_grey_of_unknown_range_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"cannot read .*float\.tif: 32-bit grey has no known range"):
        only(tmp_path / "float.tif", 4)


def test_unreadable_images_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, 60)
    (tmp_path / "017.png").write_bytes(b"no image")
    Image.new("L", (4, 5), 1).save(tmp_path / "023.png")
    options: dict[str, Any] = {"channels": 1, "crop": False, "val_fraction": 0.2, "test_fraction": 0.2}
    with pytest.raises(ValueError, match=r"0(17|23)\.png.*; repair or remove it, or .* data\.skip_unreadable=true$"):
        ImageFolder(8, str(tmp_path), 4, **options).setup()
    data = ImageFolder(8, str(tmp_path), 4, skip_unreadable=True, **options)
    data.setup()
    assert data.skipped == 2
    assert "2 of 60 images are left out:\n  data." in caplog.text
    assert all(f"{number}.png" in caplog.text for number in ("017", "023"))
    seen = torch.cat([split.pixels[:, 0, 0, 0] for split in (data.train, data.val, data.test)]).sort().values.tolist()
    assert seen == [grey for grey in range(60) if grey not in (17, 23)]


def test_a_format_is_known_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript, under any name, starts no Ghostscript; a PNG under the name of a JPEG is a PNG."""
    started: list[Any] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(1) or Image.new("L", (4, 4)).im)
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n%%EOF\n"
    for name in ("x.png", "x.eps", "x.jpg"):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(ValueError, match=rf"cannot read .*{name}: it is not an image \(AVIF, .*, WEBP\)$"):
            only(tmp_path / name, 4)
    for form in ("PCX", "TGA", "ICO", "SGI", "PDF"):  # readers that hardly anybody needs, or has tried to break
        Image.new("RGB", (16, 16)).save(tmp_path / "x.png", format=form)
        with pytest.raises(ValueError, match="it is not an image"):
            only(tmp_path / "x.png", 4)
    assert started == []
    Image.new("L", (4, 4), 7).save(tmp_path / "grey.jpg", format="PNG")
    assert only(tmp_path / "grey.jpg", 4, channels=1).unique().tolist() == [7]
    for form in FORMATS:
        Image.new("L", (4, 4), 7).save(tmp_path / "grey.png", format=form)
        assert (only(tmp_path / "grey.png", 4, channels=1).long() - 7).abs().max() <= 1, form


def test_a_size_is_known_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (12_000, 12_000)).save(tmp_path / "x.png")
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r"x\.png: 144 million pixels are more than data\.max_megapixels$"):
        only(tmp_path / "x.png", 4)
    assert time.perf_counter() - began < 0.1  # decoding takes half a second
    folder = tmp_path / "small"
    fill(folder, 60)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)  # the option alone counts
    ImageFolder(4, str(folder), 4, max_megapixels=16e-6).setup()
    with pytest.raises(ValueError, match=r"are more than data\.max_megapixels; repair or remove it"):
        ImageFolder(4, str(folder), 4, max_megapixels=15e-6).setup()
    assert Image.MAX_IMAGE_PIXELS == 4
    with pytest.raises(ValueError, match=r"^max_megapixels must be positive, got 0"):
        ImageFolder(4, str(folder), 4, max_megapixels=0)


def test_only_regular_files_are_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pipe would be waited for, and a device has no end; a file's name with a line end is in one line."""
    fill(tmp_path, 60)
    os.mkfifo(tmp_path / "x.png")
    (tmp_path / "y.png").symlink_to("/dev/zero")
    (tmp_path / "z.png").symlink_to("nowhere")
    (tmp_path / "a\nerror: b\x1b[2J.png").write_bytes(b"no image")
    for name in "xyz":
        with pytest.raises(ValueError, match=rf"cannot read .*{name}\.png: it is not a regular file$"):
            only(tmp_path / f"{name}.png", 4)
    data = ImageFolder(8, str(tmp_path), 4, skip_unreadable=True, val_fraction=0.2, test_fraction=0.2)
    data.setup()
    assert data.skipped == 4
    assert "a error: b[2J.png" in caplog.text
    assert "\x1b" not in caplog.text
    with pytest.raises(ConfigError) as caught:
        Experiment(composed("data=image_folder", f"data.root={tmp_path}", "data.batch_size=8")).data  # noqa: B018
    assert not re.search(r"[\n\x1b]", str(caught.value))


def test_a_class_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    fill(tmp_path, 60, folders=("a", "b"))
    (tmp_path / "c").mkdir()
    for number in range(20):
        (tmp_path / "c" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"data.skip_unreadable=true leaves no image of class .*c: repair or remove it$"
    ):
        ImageFolder(8, str(tmp_path), 4, labels=True, skip_unreadable=True).setup()


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    fill(tmp_path, 60, folders=("a", "b"))
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match=r"makes each sub-folder a class, but .*c has no image in it"):
        ImageFolder(8, str(tmp_path), 4, labels=True).setup()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"classes": 1},
            r"^data.root=.*: the \w+ labels go from 0 to 1, but there are 1 classes: they must be 0 to 0",
        ),
        ({"levels": 17}, r"image has grey level \d+, of 17 levels"),
    ],
)
def test_labels_and_grey_levels_are_within_their_ranges(change: dict[str, int], words: str, tmp_path: Path) -> None:
    class Wrong(ImageFolder):
        def load(self) -> Splits:
            return super().load()._replace(**change)

    fill(tmp_path, 60, folders=("a", "b"))
    with pytest.raises(ValueError, match=words):
        Wrong(8, str(tmp_path), 4, labels=True, val_fraction=0.2, test_fraction=0.2).setup()


def test_the_digest_tells_every_pixel_and_label(tmp_path: Path) -> None:
    fill(tmp_path, 60, folders=("a", "b"))

    def digest() -> str:
        data = ImageFolder(8, str(tmp_path), 4, labels=True, val_fraction=0.2, test_fraction=0.2)
        data.setup()
        return data.digest

    before = digest()
    assert digest() == before
    Image.new("L", (4, 4), 200).save(tmp_path / "a" / "000.png")
    assert digest() != before
