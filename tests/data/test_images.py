from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from flawmap.data import decode_image, read_image, read_mask, to_rgb
from flawmap.data.images import read_image_info
from flawmap.data.lister import UnreadableImageError
from flawmap.data.masks import read_regions
from flawmap.errors import ConfigError, DataError

RNG = np.random.Generator(np.random.PCG64(0))
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
DEEP = RNG.integers(0, 65536, (6, 9), dtype=np.uint16)
ORIENTATION = 0x0112


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(values: npt.NDArray[np.uint16]) -> bytes:
    """A 16-bit PNG of 1 (grey) to 4 (RGBA) channels, which Pillow cannot write."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(
    values: npt.NDArray[np.generic], *, order: str, kind: int = 1, compression: int = 1
) -> bytes:
    """A TIFF of one strip; kind 1 unsigned, 2 signed, 3 float; compression 1 none, 8 deflate."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    bits = values.dtype.itemsize * 8
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if compression == 8 else data
    bits_at = 8 + len(data)
    entries: list[tuple[int, int, int, int]] = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, bits if channels == 1 else bits_at),
        (259, 3, 1, compression),
        (262, 3, 1, 1 if channels == 1 else 2),
        (273, 4, 1, 8),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (284, 3, 1, 1),
        (339, 3, 1, kind),
    ]
    if channels > 1:
        # One sample format counts for all: readers take it, and the tag stays inline.
        entries = entries[:-1]
    depth = struct.pack(f"{order}{channels}H", *[bits] * channels) + b"\0" * 2
    start = bits_at + len(depth)
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start) + data + depth
    out += struct.pack(order + "H", len(entries))
    for tag, type_, count, value in entries:
        inline = type_ == 3 and count == 1
        field = struct.pack(
            order + ("HH" if inline else "I"), *((value, 0) if inline else (value,))
        )
        out += struct.pack(order + "HHI", tag, type_, count) + field
    return out + struct.pack(order + "I", 0)


def decode(data: bytes, white_level: int | None = None) -> npt.NDArray[np.generic]:
    return decode_image(data, name="x", white_level=white_level)[0]


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


class TestEightBit:
    @pytest.mark.parametrize(
        "name", ["a.png", "a.bmp", "a.tif", "a.webp", "a b.c.PNG", "画像.tiff"]
    )
    def test_lossless_colour(self, tmp_path: Path, name: str) -> None:
        options = {"lossless": True} if name.endswith("webp") else {}
        Image.fromarray(COLOUR).save(tmp_path / name, **options)
        image = read_image(tmp_path / name)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        np.testing.assert_array_equal(image, COLOUR)

    def test_jpeg_is_close(self) -> None:
        smooth = np.tile(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], (32, 1, 3))
        image = decode(encoded(Image.fromarray(smooth), "JPEG", quality=95))
        assert np.abs(image.astype(int) - smooth).max() <= 4

    @pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
    def test_grey_fills_three_channels(self, format: str) -> None:
        image = decode(encoded(Image.fromarray(GREY), format))
        np.testing.assert_array_equal(image, np.stack([GREY] * 3, axis=2))

    @pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
    def test_one_bit(self, format: str) -> None:
        bits = Image.fromarray(GREY).point(lambda v: 255 * (v > 127)).convert("1")
        image = decode(encoded(bits, format))
        np.testing.assert_array_equal(image[..., 1], np.asarray(bits) * np.uint8(255))

    def test_palette(self) -> None:
        quantised = Image.fromarray(COLOUR).quantize(16)
        image = decode(encoded(quantised, "PNG"))
        np.testing.assert_array_equal(image, np.asarray(quantised.convert("RGB")))

    def test_palette_with_transparency_is_composited_over_black(self) -> None:
        paletted = Image.new("P", (2, 1))
        paletted.putpalette([10, 20, 30, 40, 50, 60])
        paletted.putdata([0, 1])
        image = decode(encoded(paletted, "PNG", transparency=b"\x00\xff"))
        np.testing.assert_array_equal(image, [[[0, 0, 0], [40, 50, 60]]])
        image = decode(encoded(paletted, "PNG", transparency=0))
        np.testing.assert_array_equal(image, [[[0, 0, 0], [40, 50, 60]]])

    def test_a_colour_that_stands_for_nothing_is_black(self) -> None:
        colours = np.array([[[255, 255, 255], [40, 50, 60]]], dtype=np.uint8)
        image = decode(encoded(Image.fromarray(colours), "PNG", transparency=(255, 255, 255)))
        np.testing.assert_array_equal(image, [[[0, 0, 0], [40, 50, 60]]])
        image = decode(encoded(Image.fromarray(colours[..., 0]), "PNG", transparency=255))
        np.testing.assert_array_equal(image, [[[0, 0, 0], [40, 40, 40]]])

    def test_alpha_is_composited_over_black(self) -> None:
        rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 51], [9, 9, 9, 0]]], dtype=np.uint8)
        for format in ("PNG", "TIFF"):
            image = decode(encoded(Image.fromarray(rgba), format))
            np.testing.assert_array_equal(image, [[[200, 100, 50], [40, 20, 10], [0, 0, 0]]])

    def test_grey_with_alpha(self) -> None:
        data = encoded(Image.fromarray(np.array([[[200, 51]]], dtype=np.uint8)), "PNG")
        np.testing.assert_array_equal(decode(data), [[[40, 40, 40]]])

    def test_an_unused_alpha_channel_is_dropped(self) -> None:
        rgba = np.dstack([COLOUR, np.zeros(COLOUR.shape[:2], dtype=np.uint8)])
        np.testing.assert_array_equal(decode(encoded(Image.fromarray(rgba), "PNG")), COLOUR)

    def test_cmyk(self) -> None:
        # No ink but half the cyan, once inverted as Adobe's JPEGs are, once plain in a TIFF.
        ink = Image.new("CMYK", (16, 16), (128, 0, 0, 0))
        jpeg = encoded(ink, "JPEG", quality=100)
        assert b"Adobe" in jpeg
        np.testing.assert_allclose(decode(jpeg)[8, 8], [127, 255, 255], atol=2)
        np.testing.assert_array_equal(decode(encoded(ink, "TIFF"))[8, 8], [127, 255, 255])

    def test_the_first_frame_counts(self) -> None:
        frames = [Image.new("L", (3, 2), v) for v in (10, 20)]
        data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(decode(data), np.full((2, 3, 3), 10))

    def test_a_white_level_leaves_eight_bits_alone(self) -> None:
        np.testing.assert_array_equal(decode(encoded(Image.fromarray(COLOUR), "PNG"), 15), COLOUR)


class TestDeep:
    def expected(
        self, values: npt.NDArray[np.uint16], white: int = 65535
    ) -> npt.NDArray[np.float32]:
        scaled = np.minimum(values.astype(np.float64) / white, 1).astype(np.float32)
        return scaled if scaled.ndim == 3 else np.stack([scaled] * 3, axis=2)

    @pytest.mark.parametrize("white", [None, 4095])
    @pytest.mark.parametrize(
        "data",
        [
            png16(DEEP[..., None]),
            tiff(DEEP, order="<"),
            tiff(DEEP, order=">"),
            tiff(DEEP, order="<", compression=8),
            tiff(DEEP, order=">", compression=8),
        ],
        ids=["png", "tiff-le", "tiff-be", "tiff-le-deflate", "tiff-be-deflate"],
    )
    def test_grey(self, data: bytes, white: int | None) -> None:
        image = decode(data, white)
        assert image.dtype == np.float32
        np.testing.assert_allclose(image, self.expected(DEEP, white or 65535), atol=1e-7)

    @pytest.mark.parametrize("white", [None, 4095])
    def test_colour_keeps_all_bits(self, white: int | None) -> None:
        values = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
        for data in (
            png16(values),
            tiff(values, order="<"),
            tiff(values, order=">"),
            tiff(values, order="<", compression=8),
            tiff(values, order=">", compression=8),
        ):
            image, info = decode_image(data, name="x", white_level=white)
            np.testing.assert_allclose(image, self.expected(values, white or 65535), atol=1e-7)
            assert info.bits == 16
            assert info.peak == values.max()

    def test_colour_with_alpha(self) -> None:
        values = np.array([[[65535, 32768, 256, 65535], [65535, 65535, 1, 13107]]], dtype=np.uint16)
        image = decode(png16(values))
        expected = [[[1, 32768 / 65535, 256 / 65535], [0.2, 0.2, 0.2 / 65535]]]
        np.testing.assert_allclose(image, expected, atol=1e-6)

    def test_grey_with_alpha(self) -> None:
        values = np.array([[[4095, 65535], [256, 65535], [1, 65535], [4095, 13107]]], np.uint16)
        data = png16(values)
        expected = np.array([4095, 256, 1, 819])
        np.testing.assert_allclose(decode(data)[0, :, 0], expected / 65535, atol=1e-6)
        image, info = decode_image(data, name="x", white_level=4095)
        np.testing.assert_allclose(image[0, :, 1], expected / 4095, atol=1e-6)
        assert (info.mode, info.bits, info.peak) == ("LA;16", 16, 4095)

    def test_16_bits_for_three_colours_are_8_bit_colour(self) -> None:
        masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
        header = struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 16, 3, 4, 0, 0, 0, 0) + masks
        start = 14 + len(header)
        data = struct.pack("<2sIHHI", b"BM", start + 4, 0, 0, start) + header + b"\x00\xf8\0\0"
        np.testing.assert_array_equal(decode(data, 4095), [[[255, 0, 0]]])
        opened = Image.open(io.BytesIO(data))
        np.testing.assert_array_equal(to_rgb(opened, white_level=4095), [[[255, 0, 0]]])

    def test_32_bit_integers(self) -> None:
        small = np.array([[0, 65535]], dtype=np.int32)
        np.testing.assert_allclose(decode(tiff(small, order="<", kind=2))[0, :, 0], [0, 1])
        large = np.array([[0, 100_000]], dtype=np.int32)
        with pytest.raises(DataError, match="values up to 100000, and its white is not known"):
            decode(tiff(large, order="<", kind=2))
        image = decode(tiff(large, order="<", kind=2), 200_000)
        np.testing.assert_allclose(image[0, :, 0], [0, 0.5])

    def test_floats(self) -> None:
        values = np.array([[0, 0.25, 1]], dtype=np.float32)
        np.testing.assert_array_equal(decode(tiff(values, order="<", kind=3))[0, :, 0], values[0])
        with pytest.raises(DataError, match=r"values up to 2\.5"):
            decode(tiff(values * np.float32(2.5), order="<", kind=3))
        for bad in (np.nan, -1, np.inf):
            values[0, 0] = bad
            with pytest.raises(DataError, match="negative or not finite"):
                decode(tiff(values, order="<", kind=3))

    def test_negative_integers_are_refused(self) -> None:
        with pytest.raises(DataError, match="negative"):
            decode(tiff(np.array([[-5]], dtype=np.int16), order="<", kind=2))

    @pytest.mark.parametrize("white", [0, -1])
    def test_the_white_level_is_positive(self, white: int) -> None:
        with pytest.raises(ConfigError, match="white_level must be positive"):
            decode(png16(DEEP[..., None]), white)


class TestOrientation:
    UPRIGHT = COLOUR
    # What a camera stores so that the orientation tag makes it upright.
    STORED = (
        (1, COLOUR),
        (2, COLOUR[:, ::-1]),
        (3, COLOUR[::-1, ::-1]),
        (4, COLOUR[::-1]),
        (5, COLOUR.transpose(1, 0, 2)),
        (6, np.rot90(COLOUR, 1)),
        (7, COLOUR[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(COLOUR, -1)),
    )

    @pytest.mark.parametrize(("orientation", "stored"), STORED)
    @pytest.mark.parametrize(
        ("format", "options"),
        [
            ("PNG", {}),
            ("TIFF", {}),
            ("TIFF", {"compression": "tiff_deflate"}),
            ("WEBP", {"lossless": True}),
        ],
    )
    def test_the_image_is_upright(
        self,
        orientation: int,
        stored: npt.NDArray[np.uint8],
        format: str,
        options: dict[str, object],
    ) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        image = Image.fromarray(np.ascontiguousarray(stored))
        np.testing.assert_array_equal(
            decode(encoded(image, format, exif=exif, **options)), self.UPRIGHT
        )

    def test_jpeg_and_masks_turn_too(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        stored = np.zeros((16, 32), dtype=np.uint8)
        stored[:, :8] = 255
        image = decode(encoded(Image.fromarray(stored), "JPEG", exif=exif))
        assert image.shape == (32, 16, 3)
        assert image[:8].min() > 240
        assert image[8:].max() < 15
        Image.fromarray(stored).save(tmp_path / "m.png", exif=exif)
        mask = read_mask([tmp_path / "m.png"], (32, 16))
        assert mask[:8].all()
        assert not mask[8:].any()

    def test_a_pillow_image_turns(self) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = 3
        data = encoded(Image.fromarray(COLOUR), "PNG", exif=exif)
        np.testing.assert_array_equal(to_rgb(Image.open(io.BytesIO(data))), COLOUR[::-1, ::-1])

    def test_a_broken_exif_block_is_passed_over(self) -> None:
        data = encoded(Image.fromarray(COLOUR), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
        np.testing.assert_array_equal(decode(data), COLOUR)


class TestBroken:
    @pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
    @pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
    def test_truncated_files_are_refused(self, tmp_path: Path, format: str, part: float) -> None:
        noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        data = encoded(noise, format)
        path = tmp_path / f"a.{format}"
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(DataError, match="the image cannot be read") as caught:
            read_image(path)
        assert str(path) in str(caught.value)
        assert "--skip-bad" in str(caught.value)

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "the file is empty"),
            (b"hello", "it is no PNG, JPEG, BMP, TIFF or WebP file"),
            (b"GIF89a" + b"\0" * 50, "it is no PNG"),
            (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "it is broken"),
            (b"\xff\xd8\xff" + b"\0" * 50, "it is broken"),
            (b"BM" + b"\0" * 50, "it is broken"),
            (b"II*\0" + b"\xff" * 50, "it is "),
            (b"RIFF\0\0\0\0WEBPVP8 " + b"\0" * 50, "it is broken"),
        ],
    )
    def test_other_content_is_refused(self, data: bytes, reason: str) -> None:
        with pytest.raises(DataError, match=reason):
            decode(data)

    def test_flipped_bytes_never_escape_as_another_error(self) -> None:
        generator = np.random.Generator(np.random.PCG64(1))
        for format in ("PNG", "JPEG", "BMP", "TIFF", "WEBP"):
            clean = encoded(Image.fromarray(COLOUR), format)
            for _ in range(60):
                data = bytearray(clean)
                for place in generator.integers(2, len(data), 4):
                    data[place] = generator.integers(0, 256)
                try:
                    image, _ = decode_image(bytes(data), name="x", max_pixels=10_000)
                except DataError:
                    continue
                assert image.shape[2] == 3

    def test_why_is_told_by_itself(self) -> None:
        with pytest.raises(UnreadableImageError) as caught:
            decode(b"")
        assert caught.value.reason == "the file is empty"
        assert caught.value.message == "the image cannot be read: the file is empty"
        assert caught.value.to_dict()["error"] == "DataError"

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot be read: No such file"):
            read_image(tmp_path / "a.png")
        with pytest.raises(DataError, match="cannot be read: Is a directory"):
            read_image(tmp_path)

    def bombs(self) -> dict[str, bytes]:
        header = struct.pack(">IIBBBBB", 20_000, 15_000, 8, 0, 0, 0, 0)
        png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
        small = tiff(np.zeros((1, 1), dtype=np.uint8), order="<")
        tags = small.replace(
            struct.pack("<HHII", 256, 4, 1, 1), struct.pack("<HHII", 256, 4, 1, 20_000)
        ).replace(struct.pack("<HHII", 257, 4, 1, 1), struct.pack("<HHII", 257, 4, 1, 15_000))
        extent = (16_000 - 1).to_bytes(3, "little") * 2
        webp = b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + extent
        riff = b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp
        return {"png": png, "tiff": tags, "webp": riff}

    @pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
    def test_a_bomb_is_refused_by_its_header(self, kind: str) -> None:
        with pytest.raises(DataError, match="too large") as caught:
            decode(self.bombs()[kind])
        text = str(caught.value)
        assert ("16000 x 16000 px, 256" if kind == "webp" else "20000 x 15000 px, 300") in text
        assert "at most 200 megapixels" in text
        assert "takes max_pixels" in text

    def test_the_limit_is_an_option(self, tmp_path: Path) -> None:
        Image.fromarray(COLOUR).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png", max_pixels=54).shape == (6, 9, 3)
        with pytest.raises(DataError, match="9 x 6 px"):
            read_image(tmp_path / "a.png", max_pixels=53)
        with pytest.raises(ConfigError, match="max_pixels must be positive"):
            read_image(tmp_path / "a.png", max_pixels=0)

    @pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG"])
    def test_no_warning_of_pillow_escapes(
        self, format: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Warnings are errors here; Pillow's own limit would warn from 54 px and refuse from 108.
        data = encoded(Image.fromarray(COLOUR), format)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
        assert decode(data).shape == (6, 9, 3)

    def test_pillows_own_limit_of_tiffs_is_explained(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encoded(Image.fromarray(COLOUR), "TIFF")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        message = ""
        try:
            np.testing.assert_array_equal(decode(data), COLOUR)  # older versions do not look again
        except DataError as error:
            message = error.message
        assert message in ("", "the image is too large for Pillow: 9 x 6 px")


class TestMasks:
    def save(self, path: Path, values: npt.NDArray[np.generic]) -> Path:
        Image.fromarray(values).save(path)
        return path

    def test_any_nonzero_value_is_a_defect(self, tmp_path: Path) -> None:
        values = np.array([[0, 1], [128, 255]], dtype=np.uint8)
        mask = read_mask([self.save(tmp_path / "m.png", values)], (2, 2))
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, [[False, True], [True, True]])

    def test_the_union_counts(self, tmp_path: Path) -> None:
        one = self.save(tmp_path / "1.png", np.array([[255, 0, 0]], dtype=np.uint8))
        two = self.save(tmp_path / "2.bmp", np.array([[0, 0, 1]], dtype=np.uint8))
        np.testing.assert_array_equal(read_mask([one, two], (1, 3)), [[True, False, True]])
        assert not read_mask([], (1, 3)).any()

    def test_modes(self, tmp_path: Path) -> None:
        expected = [[False, True]]
        colour = np.array([[[0, 0, 0], [0, 0, 1]]], dtype=np.uint8)
        rgba = np.array([[[255, 0, 0, 0], [255, 0, 0, 255]]], dtype=np.uint8)
        deep = np.array([[0, 1]], dtype=np.uint16)
        bits = Image.new("1", (2, 1))
        bits.putpixel((1, 0), 1)
        bits.save(tmp_path / "bits.png")
        paletted = Image.new("P", (2, 1))
        # Editors sort palettes: here index 0 is white and index 1 black.
        paletted.putpalette([255, 255, 255, 0, 0, 0])
        paletted.putdata([1, 0])
        paletted.save(tmp_path / "palette.png")
        for name, values in (("rgb", colour), ("rgba", rgba), ("deep", deep)):
            self.save(tmp_path / f"{name}.png", values)
        for name in ("rgb", "rgba", "deep", "bits", "palette"):
            np.testing.assert_array_equal(read_mask([tmp_path / f"{name}.png"], (1, 2)), expected)

    @pytest.mark.parametrize(
        "values",
        [
            [[0, 0, 0], [0, 200, 0], [256, 0, 0]],
            # With alpha, of which 0 hides any colour.
            [[7, 0, 0, 0], [0, 200, 0, 9], [0, 0, 300, 65535]],
            [[7, 0], [200, 9], [300, 65535]],
        ],
        ids=["rgb", "rgba", "grey-alpha"],
    )
    def test_16_bit_colour_counts_with_its_low_byte(
        self, tmp_path: Path, values: list[list[int]]
    ) -> None:
        (tmp_path / "m.png").write_bytes(png16(np.array([values], dtype=np.uint16)))
        np.testing.assert_array_equal(
            read_mask([tmp_path / "m.png"], (1, 3)), [[False, True, True]]
        )

    def test_regions_keep_their_files_apart_and_their_values(self, tmp_path: Path) -> None:
        one = self.save(tmp_path / "1.png", np.array([[254, 254, 0]], dtype=np.uint8))
        two = self.save(tmp_path / "2.png", np.array([[0, 300, 0]], dtype=np.uint16))
        none = self.save(tmp_path / "3.png", np.zeros((1, 3, 3), dtype=np.uint8))
        colour = np.zeros((1, 3, 3), dtype=np.uint8)
        colour[0, 2] = 7
        found = read_regions([one, two, none, self.save(tmp_path / "4.png", colour)], (1, 3))
        assert [value for _, value in found] == [254, 300, 0, 7]
        np.testing.assert_array_equal(found[0][0], [[True, True, False]])
        np.testing.assert_array_equal(found[3][0], [[False, False, True]])
        assert not found[2][0].any()
        assert read_regions([], (1, 3)) == []
        with pytest.raises(DataError, match="differ in size"):
            read_regions([one], (3, 1))
        several = self.save(tmp_path / "5.png", np.array([[254, 255, 0]], dtype=np.uint8))
        with pytest.raises(DataError, match="must have one value") as caught:
            read_regions([several], (1, 3))
        assert caught.value.given == "2 values: 254, 255"

    def test_another_size_is_refused(self, tmp_path: Path) -> None:
        path = self.save(tmp_path / "m.png", np.zeros((2, 3), dtype=np.uint8))
        with pytest.raises(DataError, match="differ in size") as caught:
            read_mask([path], (3, 2))
        assert "a mask of 3 x 2 px" in str(caught.value)
        assert "2 x 3 px, as the image" in str(caught.value)

    def test_a_broken_mask_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "m.png").write_bytes(b"no")
        with pytest.raises(DataError, match="cannot be read") as caught:
            read_mask([tmp_path / "m.png"], (3, 2))
        assert "m.png" in str(caught.value)
        with pytest.raises(DataError, match="No such file"):
            read_mask([tmp_path / "gone.png"], (3, 2))


class TestArrays:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (np.array([[7]], dtype=np.uint8), [[[7, 7, 7]]]),
            (np.array([[[7]]], dtype=np.uint8), [[[7, 7, 7]]]),
            (np.array([[[1, 2, 3]]], dtype=np.uint8), [[[1, 2, 3]]]),
            (np.array([[[200, 100, 50, 51]]], dtype=np.uint8), [[[40, 20, 10]]]),
            (np.array([[True, False]]), [[[255] * 3, [0] * 3]]),
        ],
    )
    def test_bytes(self, given: npt.NDArray[np.generic], expected: object) -> None:
        image = to_rgb(given)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, expected)

    def test_floats_and_16_bits(self) -> None:
        image = to_rgb(np.array([[0.0, 0.5, 1.0]]))
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image[0, :, 2], np.float32([0, 0.5, 1]))
        np.testing.assert_array_equal(
            to_rgb(np.array([[0, 65535]], dtype=np.uint16))[0, :, 0], [0, 1]
        )
        np.testing.assert_array_equal(
            to_rgb(np.array([[0, 4095]], dtype=np.uint16), white_level=4095)[0, :, 0], [0, 1]
        )
        np.testing.assert_allclose(
            to_rgb(np.array([[[1, 0.5, 0.2, 0.5]]])), [[[0.5, 0.25, 0.1]]], rtol=1e-6
        )

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (np.zeros((3, 8, 8)), "channels come last"),
            (np.zeros((8, 8, 2)), "no image"),
            (np.zeros(8), "no image"),
            (np.zeros((0, 8)), "at least 1 x 1 px"),
            (np.full((2, 2), np.nan), "not finite"),
            (np.full((2, 2), -0.1), "out of range"),
            (np.full((2, 2), 200.0), "divide by 255"),
            (np.zeros((2, 2), dtype=np.int64), "int64"),
        ],
    )
    def test_other_arrays_are_refused(self, given: npt.NDArray[np.generic], message: str) -> None:
        with pytest.raises(DataError) as caught:
            to_rgb(given)
        assert message in str(caught.value)

    def test_pillow_images(self) -> None:
        np.testing.assert_array_equal(to_rgb(Image.fromarray(COLOUR)), COLOUR)
        np.testing.assert_array_equal(to_rgb(Image.fromarray(GREY))[..., 1], GREY)
        assert to_rgb(Image.fromarray(DEEP)).dtype == np.float32

    @pytest.mark.parametrize("channels", [2, 3, 4])
    def test_no_white_level_fits_pillow_images_that_lose_bits(self, channels: int) -> None:
        data = png16(np.full((2, 2, channels), 4095, dtype=np.uint16))
        with pytest.raises(DataError, match="keeps 8 of the 16 bits") as caught:
            to_rgb(Image.open(io.BytesIO(data)), white_level=4095)
        assert "a path, or a uint16 array" in str(caught.value)
        if channels == 3:
            whole = decode(data).astype(np.float32)
            np.testing.assert_allclose(
                to_rgb(Image.open(io.BytesIO(data))) / 255, whole, atol=1 / 255
            )

    def test_pillow_images_of_16_bit_grey(self) -> None:
        data = png16(np.full((2, 2, 1), 4095, dtype=np.uint16))
        assert (to_rgb(Image.open(io.BytesIO(data)), white_level=4095) == 1).all()

    def test_alpha_has_the_whole_range_whatever_is_white(self) -> None:
        values = np.array([[[4095, 2000, 0, 65535], [4095, 2000, 0, 13107]]], dtype=np.uint16)
        image = to_rgb(values, white_level=4095)
        np.testing.assert_allclose(image[0, :, 0], [1, 0.2], rtol=1e-6)
        np.testing.assert_array_equal(image, decode(png16(values), 4095))


def test_what_is_known_of_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png16(np.full((2, 2, 1), 4000, dtype=np.uint16)))
    _, info = read_image_info(tmp_path / "a.png")
    assert (info.bits, info.peak) == (16, 4000)
    Image.fromarray(COLOUR).save(tmp_path / "b.png")
    _, info = read_image_info(tmp_path / "b.png")
    assert (info.mode, info.bits, info.peak) == ("RGB", 8, None)
