"""Deep tokens: wide rows, and what a language model of transformers makes of them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from omnipersona_cli.backend import ConceptTokens
from omnipersona_cli.engine.tokens import with_depth
from omnipersona_cli.errors import SlotError
from omnipersona_cli.family.deep import added, joined_rows, level, parted, run_layers, wide_rows
from omnipersona_cli.family.recompute import recompute

WIDTH = 8


def concept(depth: int = 2) -> ConceptTokens:
    chance = torch.Generator().manual_seed(0)
    rows = [torch.randn(count, WIDTH, generator=chance) for count in (1, 4, 3)]
    tokens = ConceptTokens(name="bo", id=rows[0], und=rows[1], gen=rows[2], fact_tokens=1)
    deep = with_depth(tokens, depth)
    extra = {key: torch.randn(it.shape, generator=chance) for key, it in deep.extra.items()}
    return replace(tokens, extra=extra)


def language() -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
    )
    return LlamaModel(config).requires_grad_(False)


def test_each_layer_of_the_first_ones_has_a_token_for_each_row_but_those_for_facts() -> None:
    tokens = with_depth(concept(0), 3)
    assert tokens.depth == 3
    assert [tuple(it.shape) for it in tokens.deep("und").values()] == [(3, WIDTH)] * 3
    assert [tuple(it.shape) for it in tokens.deep("gen").values()] == [(3, WIDTH)] * 3
    assert not any(bool(it.any()) for it in tokens.extra.values())
    assert tokens.of_looks().deep("und").keys() == {1, 2, 3}


def test_a_wide_row_holds_its_deep_tokens_and_a_fact_none() -> None:
    tokens = concept()
    wide = wide_rows(tokens, "und")
    inputs, deep = parted(wide, WIDTH)
    assert torch.equal(inputs, tokens.und) and len(deep) == 2
    for layer, more in enumerate(deep, start=1):
        assert torch.equal(more[:3], tokens.deep("und")[layer]) and not more[3].any()
    bare = concept(0)
    assert wide_rows(bare, "gen") is bare.gen


def test_rows_of_any_widths_stand_behind_each_other() -> None:
    wide, plain = wide_rows(concept(), "gen"), torch.ones(2, WIDTH)
    both = joined_rows([plain, wide])
    assert torch.equal(both[:2, :WIDTH], plain) and not both[:2, WIDTH:].any()
    assert torch.equal(both[2:], wide)
    assert level([plain])[0] is plain


def test_more_deep_tokens_than_rows_are_refused() -> None:
    tokens = concept()
    cut = replace(tokens, gen=tokens.gen[:1])
    with pytest.raises(SlotError, match="3 tokens for layer 1, and 1 rows"):
        wide_rows(cut, "gen")


def test_one_part_is_held_still_in_every_layer() -> None:
    extra = {key: it.requires_grad_() for key, it in concept().extra.items()}
    still = replace(concept(), extra=extra).with_still("gen")
    assert all(it.requires_grad for it in still.deep("und").values())
    assert not any(it.requires_grad for it in still.deep("gen").values())


def test_a_token_as_long_as_its_row_adds_as_much_as_there_is() -> None:
    states, inputs = torch.tensor([[300.0, 400.0]]), torch.tensor([[0.0, 5.0]])
    found = added(states, inputs, torch.tensor([[5.0, 0.0]]))
    assert torch.equal(found, torch.tensor([[800.0, 400.0]]))
    padding = added(states, torch.zeros(1, 2), torch.zeros(1, 2))
    assert torch.equal(padding, states)


def test_layers_read_what_the_layer_before_gives_with_their_tokens_added() -> None:
    """Against the layers run one by one."""
    model, rows = language(), wide_rows(concept(), "gen")[None]
    inputs, deep = parted(rows, WIDTH)
    states = inputs
    places = torch.arange(rows.shape[1])[None]
    angles = model.rotary_emb(states, position_ids=places)
    for number, layer in enumerate(model.layers):
        if 1 <= number <= len(deep):
            length = states.norm(dim=-1, keepdim=True) / inputs.norm(dim=-1, keepdim=True)
            states = states + deep[number - 1] * length
        states = layer(states, position_ids=places, position_embeddings=angles)
    found = run_layers(model, rows)
    assert torch.allclose(found, model.norm(states), atol=1e-6)
    assert not torch.allclose(found, run_layers(model, inputs), atol=1e-3)
    assert torch.equal(run_layers(model, inputs), model(inputs_embeds=inputs).last_hidden_state)


def test_tokens_for_a_layer_that_is_not_there_are_refused() -> None:
    with pytest.raises(SlotError, match="layer 4, and the last one here is 3") as refused:
        run_layers(language(), wide_rows(concept(4), "gen")[None])
    assert refused.value.hint
    run_layers(language(), wide_rows(concept(3), "gen")[None])


@pytest.mark.parametrize("how", ["ours", "theirs"])
def test_layers_that_are_computed_again_give_the_same_gradients(how: str) -> None:
    def gradients(model: LlamaModel) -> list[Tensor]:
        tokens = concept()
        extra = {key: it.clone().requires_grad_() for key, it in tokens.extra.items()}
        own = replace(tokens, gen=tokens.gen.clone().requires_grad_(), extra=extra)
        loss = run_layers(model, wide_rows(own, "gen")[None], use_cache=False).square().sum()
        moved = [own.gen, *own.deep("gen").values()]
        return list(torch.autograd.grad(loss, moved))

    kept, again = language(), language()
    if how == "ours":
        recompute(again.layers)
    else:
        again.activation_checkpointing_enable({"use_reentrant": False})
        again.train()
    for one, other in zip(gradients(kept), gradients(again), strict=True):
        assert bool(one.any()) and torch.equal(one, other)
