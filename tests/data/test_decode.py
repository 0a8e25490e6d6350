"""Pictures come in through one door: which decoders, how large, how long, and what is said."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omnipersona_cli.data import decode as door
from omnipersona_cli.data.decode import MOST_PIXELS, decode, open_photo, open_stored, opened
from omnipersona_cli.data.photos import open_album
from omnipersona_cli.errors import PhotoError

INPUTS = Path(__file__).parent / "inputs"


def png(width, height, data=b"", *, depth=8, colour=2):
    """A PNG that announces a size, with this compressed data."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def peak_megabytes(path):
    """The most memory that a process has after opening ``path``, beside what it had before."""
    code = (
        "import sys, resource\n"
        "from pathlib import Path\n"
        "from omnipersona_cli.data.decode import decode\n"
        "from omnipersona_cli.errors import PhotoError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    decode(Path(sys.argv[1]), long_side=None)\n"
        "except PhotoError as error:\n    print(error, file=sys.stderr)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    return float(done.stdout), done.stderr


def test_an_eps_under_another_name_starts_nothing(monkeypatch):
    def started(*words, **more):
        raise AssertionError(f"a program was started: {words}")

    monkeypatch.setattr(subprocess, "Popen", started)
    with pytest.raises(PhotoError, match=r"vacation\.jpg: not a picture but PostScript"):
        open_photo(INPUTS / "vacation.jpg")


@pytest.mark.parametrize("format", ["EPS", "ICO", "PCX", "SGI", "DDS"])
def test_only_the_named_decoders_are_used(format):
    data = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(data, format)
    with pytest.raises(PhotoError, match="not a picture"):
        decode(data)


@pytest.mark.parametrize("format", [name for name in door.FORMATS if name != "TGA"])
def test_every_named_decoder_reads_what_it_should(format):
    data = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(data, format)
    assert decode(data).image.size == (32, 32)


def test_a_tiny_file_that_announces_a_large_picture_takes_no_memory(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png(7900, 8000, b"\x78\x9c\x03\x00\x00\x00\x00\x01"))
    taken, said = peak_megabytes(tmp_path / "bomb.png")
    assert "cut short or damaged" in said and taken < 30


def test_a_picture_that_unfolds_beyond_the_limit_is_refused_before_it_is_read(tmp_path):
    row = b"\0" + bytes(3 * 9000)
    (tmp_path / "bomb.png").write_bytes(png(9000, 9000, zlib.compress(row * 9000, 1)))
    taken, said = peak_megabytes(tmp_path / "bomb.png")
    assert f"larger than {MOST_PIXELS // 1_000_000} million pixels" in said and taken < 30


def test_a_webp_canvas_is_measured_before_its_decoder_takes_memory(tmp_path):
    header = b"VP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0])
    header += (16383).to_bytes(3, "little") * 2
    (tmp_path / "bomb.webp").write_bytes(
        b"RIFF" + struct.pack("<I", 4 + len(header)) + b"WEBP" + header
    )
    taken, said = peak_megabytes(tmp_path / "bomb.webp")
    assert "larger than" in said and taken < 30


def test_an_allowed_picture_takes_at_most_twelve_bytes_a_pixel(tmp_path):
    Image.new("RGBA", (4000, 3000), (200, 10, 10, 128)).save(tmp_path / "large.png")
    taken, said = peak_megabytes(tmp_path / "large.png")
    assert said == "" and taken < 12 * 12 + 60  # a strip's copies are a fixed amount


def test_frames_are_told_and_never_counted(tmp_path, monkeypatch):
    frames = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in range(0, 250, 5)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    from PIL import GifImagePlugin

    def counted(self):
        raise AssertionError("frames were counted")

    monkeypatch.setattr(GifImagePlugin.GifImageFile, "n_frames", property(counted))
    assert decode(tmp_path / "moving.gif").remarks == (door.FRAMES,)
    assert door.FRAMES in open_stored(tmp_path / "moving.gif").remarks


def test_what_decoders_warn_of_is_a_remark_and_no_line_on_stderr(tmp_path, recwarn, capfd):
    data = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(data, "JPEG")
    whole = data.getvalue()
    broken = (
        b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 40) + struct.pack("<HHII", 0x112, 3, 1, 6)
    )
    app1 = b"\xff\xe1" + struct.pack(">H", len(broken) + 2) + broken
    (tmp_path / "odd.jpg").write_bytes(whole[:2] + app1 + whole[2:])
    assert decode(tmp_path / "odd.jpg").remarks == (door.ODD,)
    assert not recwarn.list and capfd.readouterr().err == ""


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(path)
    with (
        pytest.raises(PhotoError, match="changed while it was read"),
        opened(path) as (image, _),
    ):
        with path.open("ab") as file:
            file.write(b"more")
        image.load()


def test_pipes_devices_and_links_that_lead_nowhere_are_a_note_each(tmp_path):
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "facts.yaml")
    os.mkfifo(tmp_path / "1.txt")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "2.txt").write_bytes(b"x" * (1 << 20) + b"y")
    album = open_album([tmp_path], seed=0)
    said = "\n".join(album.notes)
    assert len(album.photos) == 4
    assert "pipe.png, zero.png: not a regular file, skipped" in said
    assert "gone.png: not there, skipped" in said
    assert "loop.png: a link that leads nowhere, skipped" in said
    assert "1.txt: caption is not a file, left out" in said
    assert "2.txt: caption is larger than 1 MiB, left out" in said
    assert "facts.yaml: not a regular file, left out" in said


@pytest.mark.parametrize(
    ("start", "said", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS", "git lfs pull"),
        (b"<!DOCTYPE html><title>Sign in</title>", "a web page", "download"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG", "PNG"),
        (b"PK\x03\x04" + bytes(30), "a zip archive", "unpack it"),
        (b"%PDF-1.7", "a PDF", "PNG"),
        (b"\0\0\0\x20ftypisom", "a video", "frames"),
    ],
)
def test_what_is_no_picture_is_named_for_what_it_is(tmp_path, start, said, hint):
    (tmp_path / "x.jpg").write_bytes(start)
    with pytest.raises(PhotoError, match=rf"x\.jpg: not a picture but .*{said}") as raised:
        open_photo(tmp_path / "x.jpg")
    assert hint in raised.value.hint
