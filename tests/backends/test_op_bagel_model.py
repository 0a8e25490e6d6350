"""What BAGEL's model promises at any size, on tiny random models."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import tiny_bagel
import torch
from torch import Tensor

from op_bagel import packing
from op_bagel.cache import Cache
from op_bagel.config import BagelConfig, SpecialTokens
from op_bagel.model import GEN, Bagel, Outputs, initialise
from op_bagel.packing import pack
from op_bagel.pictures import SizeRule, patchify, position_ids, rgb, to_pixels, unpatchify
from op_bagel.sampling import (
    Guidance,
    SamplingStep,
    decode_text,
    extrapolated,
    noise_tokens,
    sample_latents,
    score,
)
from op_bagel.segments import (
    Expert,
    Latent,
    Noise,
    Sample,
    Segment,
    SoftRows,
    Text,
    Vit,
    concept_turn,
)
from op_bagel.vae import AutoEncoder, VAEConfig

SPECIAL = SpecialTokens(bos_token_id=1, eos_token_id=2, start_of_image=3, end_of_image=4)
CONFIG = replace(
    tiny_bagel.CONFIG,
    llm=replace(tiny_bagel.CONFIG.llm, vocab_size=50),
    vit=replace(tiny_bagel.CONFIG.vit, image_size=20, patch_size=4),
    vae=VAEConfig(ch=8, ch_mult=(1, 2, 1), z_channels=3, num_res_blocks=1, groupnorm_groups=4),
    special_tokens=SPECIAL,
    max_latent_size=5,
)
WIDTH, LATENT = CONFIG.llm.hidden_size, CONFIG.latent_width
GRID = (2, 3)
CELLS = GRID[0] * GRID[1]


def tiny(config: BagelConfig = CONFIG) -> Bagel:
    """A model whose every weight is random, zero starts included."""
    model = Bagel(config)
    initialise(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def model() -> Bagel:
    return tiny()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def patches(seed: int = 0, grid: tuple[int, int] = GRID) -> Vit:
    return Vit(draw(grid[0] * grid[1], CONFIG.vit.patch_width, seed=seed), grid)


def target(seed: int = 0) -> Noise:
    tokens, noise = draw(CELLS, LATENT, seed=seed), draw(CELLS, LATENT, seed=seed + 1)
    return Noise(tokens, GRID, 0.6, noise)


def slots(seed: int = 0, count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Learned rows of a concept: identifier, und, gen."""
    rows = [draw(n, WIDTH, seed=seed + i) for i, n in enumerate((1, count, count))]
    return rows[0].requires_grad_(), rows[1].requires_grad_(), rows[2].requires_grad_()


def intro(rows: tuple[Tensor, Tensor, Tensor]) -> Text:
    return concept_turn(*rows, says=[9, 10], between=[11], ends=[12])


# --- batches ------------------------------------------------------------------------------


def samples() -> list[list[Segment]]:
    """One of each task, of unequal lengths."""
    rows = slots()
    return [
        [intro(rows), Text([20, 21]), target()],
        [patches(), Text([22, 23, 24]), Text([25, 26], loss=True)],
        [Latent(draw(CELLS, LATENT, seed=5), GRID), patches(6, (3, 2)), Text([27]), target(7)],
    ]


@torch.no_grad()
def test_batch_equals_its_samples_alone(model: Bagel) -> None:
    together = model(pack(samples(), CONFIG), logits=True)
    aligned = model(pack(samples(), CONFIG, multiple=16), logits=True)
    alone = [model(pack([sample], CONFIG), logits=True) for sample in samples()]
    for batch in (together, aligned):
        torch.testing.assert_close(batch.velocity, torch.cat([one.velocity for one in alone]))
        torch.testing.assert_close(batch.ce, torch.cat([one.ce for one in alone]))


@pytest.mark.parametrize("behind", [False, True])
def test_attention_sample_by_sample_equals_that_over_padded_samples(
    model: Bagel, behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "APART", 1)
    monkeypatch.setattr(packing, "WASTE", 1.0)
    found = []
    for apart in (True, False):
        rows = slots()
        mixed = [[intro(rows), *sample[1:]] for sample in samples()]
        cache = model.prefill([intro(rows)]) if behind else None
        packed = pack(mixed, CONFIG, multiple=16)
        assert packed.apart == tuple(packed.lengths.tolist())
        outputs = model(packed if apart else replace(packed, apart=None), cache)
        torch.autograd.backward(outputs.ce.sum() + outputs.mse.sum())
        found.append([outputs.ce, outputs.velocity, *(one.grad for one in rows)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)


def test_heads_without_rows_give_nothing_and_the_others_train(model: Bagel) -> None:
    drawing, answering, _ = samples()
    only_drawn, only_said = (model(pack([s], CONFIG)) for s in (drawing, answering))
    assert len(only_drawn.ce) == 0 and len(only_drawn.mse) == CELLS
    assert len(only_said.mse) == 0 and only_said.velocity.shape == (0, LATENT)
    (only_drawn.mse.mean() + only_said.ce.mean()).backward()
    assert model.llm2vae.weight.grad is not None and model.vae2llm.weight.grad is not None


def test_understanding_runs_without_a_generation_expert(model: Bagel) -> None:
    expected = [*decode_text(model, model.prefill([patches(), Text([20])]), max_new=4)]
    nowhere = torch.device("meta")
    for name, parameter in [*model.named_parameters()]:
        if GEN in name or name.startswith(("vae2llm", "llm2vae", "time_embedder", "latent_pos")):
            owner = model.get_submodule(name.rpartition(".")[0])
            empty = torch.nn.Parameter(parameter.to(nowhere), requires_grad=False)
            setattr(owner, name.rpartition(".")[2], empty)
    cache = model.prefill([patches(), Text([20])])
    assert [*decode_text(model, cache, max_new=4)] == expected
    assert len(model(pack([samples()[1]], CONFIG)).ce) == 3


@torch.no_grad()
def test_ready_features_stand_for_patches_without_the_vision_tower(model: Bagel) -> None:
    pictures = [patches(), patches(3, (4, 2))]
    seen = [model.prefill([picture, Text([20])]) for picture in pictures]
    grids = [picture.grid for picture in pictures]
    rows = [picture.patches for picture in pictures if picture.patches is not None]
    features = model.see(rows, grids)
    model.vit_model = torch.nn.Module()  # type: ignore[assignment]
    for cache, ready in zip(seen, features, strict=True):
        again = model.prefill([Vit(features=ready), Text([20])])
        torch.testing.assert_close(again.values[-1], cache.values[-1])


@torch.no_grad()
def test_nothing_sees_a_picture_that_is_being_drawn(model: Bagel) -> None:
    def hidden(seed: int) -> Tensor:
        after: list[Segment] = [Latent(draw(CELLS, LATENT, seed=9), GRID), Text([20])]
        outputs: Outputs = model(pack([[Text([21]), target(seed), *after]], CONFIG), hidden=True)
        return outputs.hidden[-1]

    one, other = hidden(0), hidden(50)
    block = slice(3, 3 + CELLS + 2)
    assert not torch.allclose(one[block], other[block])
    assert torch.equal(one[: block.start], other[: block.start])
    torch.testing.assert_close(one[block.stop :], other[block.stop :])


@pytest.mark.parametrize("expert", ["und", "gen"])
@torch.no_grad()
def test_learned_rows_run_through_their_own_expert_alone(model: Bagel, expert: Expert) -> None:
    turn = Text([0], soft=[SoftRows([0], draw(1, WIDTH), expert)], raw=True)
    packed = pack([[turn]], CONFIG)
    assert (packed.und_rows, len(packed.place)) == (int(expert == "und"), 1)

    def moves(changed: Expert) -> bool:
        """Whether the row comes out differently once this expert's weights change."""
        other = tiny()
        for name, parameter in other.named_parameters():
            if "layers." in name and (GEN in name) == (changed == "gen"):
                parameter.mul_(1.5)
        states = [m(packed, hidden=True).hidden[-2] for m in (model, other)]
        return not torch.equal(*states)

    assert [moves("und"), moves("gen")] == [expert == "und", expert == "gen"]


def test_labels_never_include_learned_rows() -> None:
    sks, _, gen = slots()
    turn = Text([0, 20, 0, 21], loss=True, soft=[SoftRows([0], sks), SoftRows([2], gen[:1], "gen")])
    packed = pack([[turn]], CONFIG)
    assert packed.labels.tolist() == [20, SPECIAL.eos_token_id]
    predictors = packed.label_at.tolist()
    soft_row = len(packed.text_ids)
    assert predictors == [soft_row, 2]  # the sks row, then the id before eos


def test_weights_that_stand_still_still_teach_learned_rows(model: Bagel) -> None:
    model.requires_grad_(False)
    rows = slots()
    drawing: list[Segment] = [intro(rows), Text([20]), target()]
    answer: list[Segment] = [intro(rows), patches(), Text([21], loss=True)]
    outputs = model(pack([drawing, answer], CONFIG))
    (outputs.ce.mean() + outputs.mse.mean()).backward()
    for leaf in rows:
        assert leaf.grad is not None and bool((leaf.grad.abs().sum(1) > 0).all())


def test_a_clean_picture_takes_one_position_and_a_noised_one_none() -> None:
    noised, clean = target(), Latent(draw(CELLS, LATENT), GRID)
    packed = pack([[Text([20]), noised, clean, Text([21])]], CONFIG)
    wanted = [0, 1, 2, *[3] * (2 * CELLS + 4), 4, 5, 6]
    assert packed.positions[packed.order].tolist() == [[place] * 3 for place in wanted]
    assert packed.advance.tolist() == [7]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ([[]], "no rows"),
        ([], "nothing to pack"),
        ([[Vit()]], "either patches or features"),
        ([[Vit(draw(CELLS, 5), GRID)]], "width"),
        ([[Vit(draw(4, CONFIG.vit.patch_width), GRID)]], "do not fill"),
        ([[patches(0, (1, 6))]], "does not fit a table"),
        ([[Latent(draw(CELLS, LATENT + 1), GRID)]], "width"),
        ([[Text([1, 2], soft=[SoftRows([2], draw(1, WIDTH))])]], "inside their turn"),
        ([[Text([1, 2], soft=[SoftRows([0, 0], draw(2, WIDTH))])]], "distinct"),
        ([[Text([1, 2], soft=[SoftRows([0], draw(2, WIDTH))])]], "soft rows of width"),
        ([[target()], [Noise(draw(CELLS, LATENT), GRID, 0.5)]], "or none"),
    ],
)
def test_packing_refuses(bad: list[list[Segment]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pack(bad, CONFIG)


# --- contexts -----------------------------------------------------------------------------


@torch.no_grad()
def test_context_grown_in_pieces_equals_one_prefill(model: Bagel) -> None:
    rows = slots()
    segments: list[Segment] = [intro(rows), Latent(draw(CELLS, LATENT), GRID), patches(), Text([5])]
    whole, grown = model.prefill(segments), model.empty_cache()
    for segment in segments:
        grown = model.prefill([segment], cache=grown)
    assert torch.equal(whole.positions, grown.positions)
    for old, new in zip(whole.values, grown.values, strict=True):
        torch.testing.assert_close(old, new)


@torch.no_grad()
def test_ragged_contexts_in_a_batch_equal_each_alone(model: Bagel) -> None:
    shared = model.prefill([intro(slots())])
    endings: list[Sample] = [[Text([20])], [Text([21, 22, 23])], [patches(), Text([24])]]
    batch = model.prefill(*endings, cache=shared)
    alone = [model.prefill(ending, cache=shared) for ending in endings]
    for cache in (batch, Cache.stack(alone)):
        found, _ = model.next_logits([1] * len(endings), cache)
        wanted = torch.cat([model.next_logits([1], one)[0] for one in alone])
        torch.testing.assert_close(found, wanted)


def test_picture_being_drawn_cannot_enter_a_context(model: Bagel) -> None:
    with pytest.raises(ValueError, match="cannot enter"):
        model.prefill([target()])


def test_two_contexts_cannot_serve_three_samples(model: Bagel) -> None:
    with pytest.raises(ValueError, match="cannot serve"):
        model.empty_cache(2).expand(3)


@torch.no_grad()
def test_scores_are_log_probabilities_of_whole_turns(model: Bagel) -> None:
    cache = model.prefill([patches(), Text([20])])
    answers = [[21], [22, 23], [24, 25, 26]]

    def one_by_one(ids: Sequence[int]) -> float:
        total, state, fed = 0.0, cache, SPECIAL.bos_token_id
        for wanted in (*ids, SPECIAL.eos_token_id):
            logits, state = model.next_logits([fed], state)
            total += float(logits[0].log_softmax(-1)[wanted])
            fed = wanted
        return total

    found = score(model, cache, answers)
    torch.testing.assert_close(found, torch.tensor([one_by_one(ids) for ids in answers]))
    each = score(model, Cache.stack([cache] * len(answers)), answers)
    torch.testing.assert_close(each, found)


def test_text_is_the_same_for_the_same_seed(model: Bagel) -> None:
    cache = model.prefill([Text([20])])

    def spoken(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [*decode_text(model, cache, max_new=12, temperature=2.0, generator=generator)]

    assert spoken(0) == spoken(0)
    assert len({tuple(spoken(seed)) for seed in range(4)}) > 1
    assert len([*decode_text(model, cache, max_new=3)]) <= 3


# --- drawing ------------------------------------------------------------------------------


@pytest.mark.parametrize("renorm", ["global", "channel", "text_channel"])
@pytest.mark.parametrize("together", [True, False])
def test_pictures_drawn_in_a_batch_equal_each_alone(
    model: Bagel, renorm: str, together: bool
) -> None:
    guidance = Guidance(text=3.0, image=1.5, interval=(0.0, 1.0), renorm=renorm)  # type: ignore[arg-type]
    with torch.no_grad():
        before = model.prefill([patches()])
        full = model.prefill([Text([20])], cache=before)
        words = model.prefill([Text([20])])

    def drawn(seeds: Sequence[int], *, together: bool) -> Tensor:
        return sample_latents(
            model,
            full,
            noise=noise_tokens(GRID, LATENT, seeds),
            grid=GRID,
            no_text=before,
            no_image=words,
            guidance=guidance,
            steps=3,
            together=together,
        )

    wanted = torch.cat([drawn([seed], together=False) for seed in (4, 5)])
    torch.testing.assert_close(drawn([4, 5], together=together), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(drawn([4, 5], together=together), drawn([4, 5], together=together))


def test_every_step_is_reported_and_the_last_state_is_the_picture(model: Bagel) -> None:
    steps: list[SamplingStep] = []
    cache = model.prefill([Text([20])])
    noise = noise_tokens(GRID, LATENT, [0])
    final = sample_latents(model, cache, noise=noise, grid=GRID, steps=4, on_step=steps.append)
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert {step.total for step in steps} == {4}
    before, last = steps[-2].state, steps[-1]
    torch.testing.assert_close(before - last.t * last.velocity, final)  # the last update ends at 0
    assert torch.equal(steps[-1].state, final)
    guided = ["no_text" in step.branches for step in steps]
    assert guided == [0.4 < step.t <= 1.0 for step in steps]


def test_the_second_order_solver_is_exact_where_velocity_is_linear_in_time() -> None:
    # but for its first step, which has no step before it: there the line is followed from the next
    times = [0.9, 0.7, 0.4, 0.0]
    slope = torch.tensor([[[2.0]]])
    x = torch.zeros(1, 1, 1)
    for before, t, after in zip(times, times[1:], times[2:], strict=False):
        x = x - (t - after) * extrapolated(slope * t, t, after, (before, slope * before))
    assert x.item() == pytest.approx(-(0.7**2))


def test_what_a_cache_was_grown_from_lies_in_its_memory(model: Bagel) -> None:
    begun = model.prefill([Text((3, 4, 5))])
    whole = model.prefill([Text((6, 7))], cache=begun)
    shared = whole.beginning(begun)
    assert torch.equal(shared.keys[0], begun.keys[0]) and torch.equal(
        shared.positions, begun.positions
    )
    assert shared.keys[0].data_ptr() == whole.keys[0].data_ptr()


def test_a_renorm_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown renorm"):
        Guidance(renorm="local")  # type: ignore[arg-type]


def test_sampler_refuses_what_does_not_fit(model: Bagel) -> None:
    cache = model.prefill([Text([20])])
    noise = noise_tokens(GRID, LATENT, [0])
    with pytest.raises(ValueError, match="without pictures"):
        sample_latents(model, cache, noise=noise, grid=GRID, guidance=Guidance(image=2.0))
    with pytest.raises(ValueError, match="shape"):
        sample_latents(model, cache, noise=noise, grid=(1, 1))


# --- sizes and weights --------------------------------------------------------------------


def test_config_survives_its_dictionary() -> None:
    assert BagelConfig.from_dict(CONFIG.to_dict()) == CONFIG
    assert CONFIG.stride == 8 and BagelConfig().stride == 16


@pytest.mark.parametrize(
    ("part", "values", "says"),
    [
        ("llm", {"hidden_act": "relu"}, "silu"),
        ("vit", {"rope": True}, "rotary"),
        ("bagel", {"vit_max_num_patch_per_side": 69}, "69"),
        ("bagel", {"connector_act": "relu"}, "activation"),
        ("vae", {"downsample": 4}, "downsample"),
        ("vae", {"ch": 100}, "groups"),
    ],
)
def test_config_refuses_what_is_not_implemented(
    part: str, values: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        BagelConfig.from_dict({part: values})


def test_tied_model_has_no_head_of_its_own_and_norms_are_optional() -> None:
    plain = replace(CONFIG, llm=replace(CONFIG.llm, tie_word_embeddings=True, qk_norm=False))
    model = tiny(plain)
    names = [*model.state_dict()]
    assert not [name for name in names if "lm_head" in name or "q_norm" in name]
    outputs = model(pack([samples()[1]], plain))
    outputs.ce.mean().backward()
    assert model.language_model.model.embed_tokens.weight.grad is not None


def test_fresh_model_is_the_same_for_a_seed_and_starts_with_twin_experts() -> None:
    one, other = Bagel(CONFIG), Bagel(CONFIG)
    initialise(one, 3)
    initialise(other, 3)
    weights = one.state_dict()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in weights.items())
    assert all(
        torch.equal(value, weights[name.replace(GEN, "")])
        for name, value in weights.items()
        if GEN in name
    )
    assert not one.llm2vae.weight.any() and not one.llm2vae.bias.any()
    assert not one.latent_pos_embed.pos_embed.requires_grad


@torch.no_grad()
def test_autoencoder_keeps_sizes_and_refuses_others() -> None:
    vae = AutoEncoder(CONFIG.vae)
    images = draw(2, 3, 8, 12)
    latents = vae.encode(images)
    assert latents.shape == (2, CONFIG.vae.z_channels, 2, 3)
    assert vae.decode(latents).shape == images.shape
    mean, logvar = vae.moments(images)
    noised = vae.encode(images, torch.ones_like(mean))
    wanted = latents + CONFIG.vae.scale_factor * (logvar / 2).exp()
    torch.testing.assert_close(noised, wanted)
    with pytest.raises(ValueError, match="does not split"):
        vae.encode(draw(1, 3, 8, 10))


def test_patches_undo() -> None:
    x = draw(2, 3, 8, 12)
    tokens, grid = patchify(x, 4)
    assert grid == (2, 3) and tokens.shape == (2, 6, 48)
    assert torch.equal(tokens[0, 1, :3], x[0, :, 0, 4])
    assert torch.equal(unpatchify(tokens, grid, 4), x)
    with pytest.raises(ValueError, match="does not split"):
        patchify(x, 5)


def test_position_ids_stay_inside_their_table() -> None:
    assert position_ids((2, 2), 5).tolist() == [0, 1, 5, 6]
    assert position_ids((9, 9), 5, interpolate=True).max() == 24
    with pytest.raises(ValueError, match="does not fit"):
        position_ids((6, 1), 5)


def test_transparent_picture_is_flattened_on_white() -> None:
    from PIL import Image

    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    assert SizeRule(max_size=8, min_size=8, stride=4).resize(clear).size == (8, 8)
    assert to_pixels(torch.tensor([-2.0, 0.0, 2.0])[:, None, None]).tolist() == [[[0, 127, 255]]]
