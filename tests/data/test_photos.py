"""A folder of photos just works, and what does not is said in a sentence."""

import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from omnipersona_cli.data.decode import open_photo
from omnipersona_cli.data.photos import blur_of, open_album, open_pictures
from omnipersona_cli.errors import MissingError, PhotoError
from omnipersona_cli.hookspecs import Region


def picture(seed, size=(64, 48)):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


@pytest.fixture
def folder(tmp_path):
    """Ten good photos."""
    place = tmp_path / "photos"
    place.mkdir()
    for index in range(10):
        picture(index).save(place / f"{index}.png")
    return place


def notes(album):
    return "\n".join(album.notes)


def test_a_part_is_held_out_by_the_seed(folder):
    album = open_album([folder], seed=3)
    assert [photo.name for photo in album.photos] == [f"{index}.png" for index in range(10)]
    assert (len(album.learning), len(album.held_out)) == (8, 2)
    assert album.notes == ()
    again = open_album([folder], seed=3)
    assert [photo.name for photo in again.held_out] == [photo.name for photo in album.held_out]
    chosen = {tuple(p.name for p in open_album([folder], seed=s).held_out) for s in range(6)}
    assert len(chosen) > 1


def test_files_and_folders_mix_and_count_once(folder, tmp_path):
    picture(99).save(tmp_path / "extra.png")
    album = open_album([folder, folder / "0.png", tmp_path / "extra.png"], seed=0)
    assert len(album.photos) == 11


def test_a_photo_is_turned_upright_and_made_small(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1, (2400, 1200)).save(tmp_path / "a.jpg", exif=exif)
    assert open_album([tmp_path], seed=0).photos[0].image.size == (512, 1024)
    assert open_photo(tmp_path / "a.jpg").size == (1200, 2400)


def test_every_kind_of_pixel_becomes_rgb(folder):
    picture(20).convert("CMYK").save(folder / "cmyk.jpg")
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    Image.fromarray(grey).save(folder / "deep.png")
    picture(21).save(folder / "moving.gif", save_all=True, append_images=[picture(22)])
    picture(23).convert("P").save(folder / "palette.png")
    album = open_album([folder], seed=0)
    assert {photo.image.mode for photo in album.photos} == {"RGB"}
    assert "cmyk.jpg: print colours" in notes(album)
    assert "deep.png: more than 8 bits" in notes(album)
    assert "moving.gif: several frames" in notes(album)
    deep = next(photo for photo in album.photos if photo.name == "deep.png")
    assert np.asarray(deep.image).max() == 255


def test_a_transparent_photo_lies_on_white_and_brings_its_own_outline(folder):
    cut = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(cut).rectangle((10, 20, 39, 49), fill="red")
    cut.save(folder / "cut.png")
    photo = next(p for p in open_album([folder], seed=0).photos if p.name == "cut.png")
    assert photo.image.getpixel((0, 0)) == (255, 255, 255)
    assert photo.box == (10, 20, 40, 50)


def test_duplicates_are_skipped_but_other_poses_stay(folder):
    shutil.copy(folder / "0.png", folder / "copy.png")
    picture(1).save(folder / "saved again.jpg", quality=90)
    other = picture(2)
    ImageDraw.Draw(other).ellipse((20, 10, 44, 34), fill="white")
    other.save(folder / "other.png")
    album = open_album([folder], seed=0)
    assert len(album.photos) == 11
    assert "copy.png, saved again.jpg: the same picture as another photo" in notes(album)


def test_what_is_no_photo_is_named_and_skipped(folder):
    (folder / "letter.doc").write_bytes(b"not a picture at all")
    (folder / "empty.jpg").touch()
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    whole = io.BytesIO()
    picture(30, (400, 400)).save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:900])
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (64, 64)).save(folder / "black.png")
    (folder / ".DS_Store").write_bytes(b"x")
    os.mkfifo(folder / "pipe.png")
    (folder / "facts.yaml").mkdir()
    said = notes(album := open_album([folder], seed=0))
    assert len(album.photos) == 10
    assert "letter.doc: not a picture, skipped" in said
    assert "empty.jpg: empty, skipped" in said
    assert "phone.heic: " in said
    assert "cut.jpg: cut short or damaged, skipped" in said
    assert "dot.png: only 1 x 1 pixels, skipped" in said
    assert "black.png: blank, skipped" in said
    assert "pipe.png: not a regular file, skipped" in said
    assert "facts.yaml: not a regular file, left out" in said
    assert "DS_Store" not in said


def test_a_decompression_bomb_is_never_unfolded(folder, monkeypatch):
    monkeypatch.setattr("omnipersona_cli.data.decode.MOST_PIXELS", 5000)
    picture(40, (100, 100)).save(folder / "bomb.png")
    assert "bomb.png: larger than" in notes(open_album([folder], seed=0))


def test_a_photo_that_may_not_be_read_is_named(folder, monkeypatch):
    real = os.open

    def guarded(path, *flags, **more):
        if os.fspath(path) == str(folder / "0.png"):
            raise PermissionError(13, "denied")
        return real(path, *flags, **more)

    monkeypatch.setattr(os, "open", guarded)
    assert "0.png: may not be read (permission denied), skipped" in notes(
        open_album([folder], seed=0)
    )


def test_tiny_and_blurred_photos_are_reported_and_kept(folder):
    picture(50, (30, 20)).save(folder / "tiny.png")
    soft = picture(51, (8, 6)).resize((320, 240), Image.Resampling.BICUBIC)
    soft.save(folder / "soft.png")
    album = open_album([folder], seed=0)
    assert len(album.photos) == 12
    assert "tiny.png: tiny" in notes(album)
    assert "soft.png: blurred" in notes(album)
    assert blur_of(soft) > blur_of(picture(0))


def test_one_photo_is_varied_and_nothing_is_held_out(tmp_path):
    picture(0).save(tmp_path / "only.png")

    def finder(image, kind):
        return Region(box=(4, 4, 20, 20), mask=Image.new("L", image.size, 255))

    album = open_album([tmp_path], seed=0, finder=finder)
    assert len(album.photos) == 6 and not album.held_out
    assert len({photo.name for photo in album.photos}) == 6
    assert album.photos[1].box == (44, 4, 60, 20)
    for photo in album.photos:
        left, top, right, bottom = photo.box
        assert 0 <= left < right <= 64 and 0 <= top < bottom <= 48
    assert "one photo" in notes(album) and "weak" in notes(album)


def test_five_hundred_photos_become_a_hundred_evenly_spread(tmp_path):
    for index in range(500):
        picture(index, (32, 24)).save(tmp_path / f"{index:03}.png", compress_level=0)
    (tmp_path / "000.png").write_bytes(b"broken")
    album = open_album([tmp_path], seed=0)
    assert len(album.photos) == 100
    places = [int(photo.name[:3]) for photo in album.photos]
    assert places == sorted(places) and max(np.diff(places)) <= 6
    assert "500 photos are many" in notes(album)
    assert len(open_pictures(tmp_path, most=7)) == 7


def test_a_subject_that_is_not_found_is_said_once(folder):
    album = open_album([folder], seed=0, finder=lambda image, kind: None)
    assert "0.png, 1.png, 2.png and 7 more: subject not outlined" in notes(album)


def test_captions_and_facts_beside_the_photos_are_read(folder):
    (folder / "3.txt").write_text(" a frog\n on a log ")
    (folder / "4.png.txt").write_text("at the beach")
    (folder / "facts.yaml").write_text("class: frog\nfacts:\n- its toy is a red ball\n")
    album = open_album([folder], seed=0)
    captions = {photo.name: photo.caption for photo in album.photos if photo.caption}
    assert captions == {"3.png": "a frog on a log", "4.png": "at the beach"}
    assert album.facts == ("its toy is a red ball",)
    assert (album.class_word, album.kind) == ("frog", "frog")
    assert open_album([folder], seed=0, kind="animal").kind == "animal"


def test_subfolders_are_left_alone_and_named(folder):
    (folder / "more").mkdir()
    picture(60).save(folder / "more" / "x.png")
    (folder / "empty").mkdir()
    album = open_album([folder], seed=0)
    assert len(album.photos) == 10
    assert "more: subfolders with pictures, not looked into" in album.notes


def test_no_photos_is_an_error_that_says_where_to_look(tmp_path):
    with pytest.raises(PhotoError, match="no photos in") as raised:
        open_album([tmp_path], seed=0)
    assert raised.value.hint
    (tmp_path / "sub").mkdir()
    picture(0).save(tmp_path / "sub" / "a.png")
    with pytest.raises(PhotoError, match="only in its subfolders") as raised:
        open_album([tmp_path], seed=0)
    assert "sub" in raised.value.hint


def test_a_wrong_path_gets_the_nearest_one(folder):
    with pytest.raises(MissingError, match="there is no") as raised:
        open_album([folder.parent / "photo"], seed=0)
    assert "photos" in raised.value.hint


def test_photos_that_are_all_unusable_say_why(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "b.jpg").write_bytes(b"text")
    with pytest.raises(PhotoError, match=r"b\.jpg: not a picture"):
        open_album([tmp_path], seed=0)


@pytest.mark.parametrize("make", ["dot", "text", "folder", "nothing"])
def test_one_picture_that_cannot_be_used_is_named(tmp_path, make):
    path = tmp_path / "x.png"
    if make == "dot":
        Image.new("RGB", (1, 1)).save(path)
    elif make == "text":
        path.write_text("hello")
    elif make == "folder":
        path.mkdir()
    with pytest.raises(PhotoError, match=r"x\.png: ") as raised:
        open_photo(path)
    assert raised.value.hint and "\n" not in str(raised.value)


def test_a_picture_comes_from_a_stream_too():
    stream = io.BytesIO()
    picture(0).save(stream, "PNG")
    stream.seek(0)
    assert open_photo(stream).size == (64, 48)


def test_captions_are_read_by_their_encoding_or_refused_by_name(folder):
    text = "bo\u2019s on a sofa, caf\u00e9 lights"
    (folder / "0.txt").write_bytes(text.encode("utf-16"))
    (folder / "1.txt").write_bytes(text.encode("cp1252"))
    (folder / "2.txt").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    (folder / "3.txt").write_bytes("ソファの上の bo".encode("cp932"))
    (folder / "4.txt").write_bytes(b"bo on the bea\xc2\xadch\x00\x00")
    (folder / "5.txt").write_text("<rex> next to <bo>, <|im_end|> <image>")
    album = open_album([folder], seed=0)
    captions = {photo.name: photo.caption for photo in album.photos if photo.caption}
    assert captions == {
        "0.png": text,
        "2.png": text,
        "4.png": "bo on the beach",
        "5.png": "<rex> next to <bo>,",
    }
    assert "1.txt, 3.txt: caption is not UTF-8 text, left out" in album.notes
