"""What the report card says is measured on what was learned."""

from PIL import ImageFilter

from omnipersona_cli.engine import Keeping, Settings, Subject, learn
from omnipersona_cli.engine.examine import examine, numbered
from omnipersona_cli.engine.material import gather
from omnipersona_cli.engine.tokens import copy_of
from omnipersona_cli.testing import drawing


def examined(backend, tokens, photos, **settings):
    material = gather(Subject(photos=photos, name="bo"), seed=2, backend="sketch")
    return examine(
        backend,
        tokens,
        material,
        samples=settings.pop("samples", 4),
        rising=False,
        on_progress=lambda event: None,
    )


def test_a_learned_disc_has_a_good_card(learned):
    card = learned.result.report.card
    assert card.grade == "good" and card.samples == 4
    assert card.recognition.accuracy > 0.9 and card.recognition.low < 0.8
    assert (card.recognition.photos, card.recognition.others) == (3, 4)
    assert card.identity.recognised == 4 and card.identity.share > 0.6
    assert card.difference.answer > 0 and card.difference.picture > 0
    assert card.memorised.copies == 0
    assert not any(it.reason == "missed" for it in card.hard)
    assert card.following is None, "the sketch backend sees no places"


def test_the_card_is_kept_in_the_pack_without_file_names(learned):
    kept = learned.library.header("bo").evals["sketch"]["card"]
    assert kept == learned.result.report.card.to_dict(named=False)
    assert kept["verdict"] == "good" and "name" not in kept["memorised"]


def test_tokens_of_another_thing_get_a_weak_card(learned, photos):
    from omnipersona_cli.engine.tokens import from_slot

    mam = from_slot(learned.library.load("mam"), learned.backend)
    wrong = examined(learned.backend, mam, [photos]).card
    assert wrong.grade == "weak" and wrong.identity.share < 0.3
    assert any(it.reason == "not learned" for it in wrong.hard)


def test_tokens_of_zeros_make_no_difference_to_pictures(learned, photos):
    start = learned.backend.new_tokens(
        "bo", understand=1, generate=1, photos=[drawing("red", 1)], seed=0
    )
    empty = copy_of(start)
    for rows in (empty.id, empty.und, empty.gen):
        rows.zero_()
    card = examined(learned.backend, empty, [photos]).card
    assert card.difference.picture == 0.0 and card.grade == "weak"


def test_a_sample_that_is_a_photo_is_a_copy(learned, photos, monkeypatch):
    shown = gather(Subject(photos=[photos], name="bo"), seed=2, backend="sketch").album.learning[4]
    monkeypatch.setattr(learned.backend, "gen", lambda prompt, **rest: iter([shown.image]))
    tokens = learned.backend.new_tokens(
        "bo", understand=4, generate=4, photos=[shown.image], seed=0
    )
    memorised = examined(learned.backend, tokens, [photos]).card.memorised
    assert memorised.copies == 4 and memorised.name == shown.name
    assert memorised.nearest > 0.999


def test_without_samples_what_needs_them_is_left_out(sketch, bo, library):
    card = learn(
        bo, Settings(steps=2), Keeping(library=library, samples=0), backend=sketch
    ).report.card
    assert (card.identity, card.following, card.memorised) == (None, None, None)
    assert card.difference.picture is None and card.difference.answer is not None


def test_blurred_and_tiny_photos_are_named(sketch, library, tmp_path):
    for seed in range(5):
        drawing("red", seed).save(tmp_path / f"{seed}.png")
    soft = drawing("red", 6).filter(ImageFilter.GaussianBlur(4))
    soft.save(tmp_path / "5.png")
    drawing("red", 7).resize((40, 40)).save(tmp_path / "6.png")
    card = learn(
        Subject(photos=[tmp_path], name="bo"),
        Settings(steps=2),
        Keeping(library=library),
        backend=sketch,
    ).report.card
    found = {(it.photo, it.name, it.reason) for it in card.hard}
    assert {(6, "5.png", "blurred"), (7, "6.png", "tiny")} <= found


def test_varied_copies_count_as_their_photo(sketch, library, tmp_path):
    drawing("red", 1).save(tmp_path / "one.png")
    material = gather(Subject(photos=[tmp_path], name="bo"), seed=0, backend="sketch")
    assert {number for number, _ in numbered(material.album.photos)} == {1}
    result = learn(
        Subject(photos=[tmp_path], name="bo"),
        Settings(steps=4),
        Keeping(library=library),
        backend=sketch,
    )
    card = result.report.card
    assert card.recognition.photos == 1 and card.recognition.calibration_error is None
    assert card.grade != "good" and card.identity is None


def test_features_tell_things_apart(sketch):
    red, rose, blue = sketch.see([drawing("red", 1), drawing("red", 2), drawing("blue", 1)])
    assert ((red - rose) ** 2).sum() < ((red - blue) ** 2).sum()
