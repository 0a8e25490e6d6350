"""A language model of no family of ours answers with what is shared."""

from collections.abc import Sequence

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from omnipersona_cli.backend import ConceptTokens
from omnipersona_cli.family.language import Ask, CausalLM, PreparedLesson, Question
from omnipersona_cli.family.tokens import conversation, introduced
from omnipersona_cli.language.mentions import to_turn

WIDTH = 16


def letters() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = Tokenizer(models.BPE(vocab={it: i for i, it in enumerate(alphabet)}, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="</s>")


@pytest.fixture(scope="module")
def llm() -> CausalLM:
    tokenizer = letters()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 8,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    llama = LlamaForCausalLM(config).requires_grad_(False).eval()
    return CausalLM(
        llama.model,
        llama.model.embed_tokens,
        llama.lm_head,
        tokenizer,
        end=len(tokenizer) - 1,
        vocabulary=len(tokenizer),
    )


def concept(seed: int = 0) -> ConceptTokens:
    generator = torch.Generator().manual_seed(seed)
    rows = (torch.randn(n, WIDTH, generator=generator).requires_grad_() for n in (1, 3, 2))
    return ConceptTokens(name="bo", **dict(zip(("id", "und", "gen"), rows, strict=True)))


def picture(seed: int = 0) -> Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed))


def lesson(request: str, answer: str, picture: Tensor | None) -> PreparedLesson:
    return PreparedLesson(
        task="understand",
        request=to_turn(request),
        answer=answer,
        picture=picture,
        codes=None,
        free=None,
    )


def asker(llm: CausalLM) -> Ask:
    def ask(one: PreparedLesson, tokens: ConceptTokens) -> Question:
        shown = None if one.picture is None else ("[", one.picture, "]")
        before = [*introduced(["bo"], "understand"), "\n"]
        return llm.question(before, conversation([one.request], ["bo"]), (tokens,), shown)

    return ask


def lessons() -> Sequence[PreparedLesson]:
    one, other = picture(1), picture(2)
    return [
        lesson("is <bo> here?", "yes", one),
        lesson("is <bo> here?", "no", one),
        lesson("who is <bo>?", "a dog", None),
        lesson("is it <bo>?", "no", other),
    ]


def test_a_question_is_the_same_rows_in_two_parts(llm: CausalLM) -> None:
    shared, asked = asker(llm)(lessons()[0], concept())
    tokens = concept()
    whole = llm.rows(["<", "["], ()), llm.rows(["]"], ())
    assert torch.equal(shared[-6:-5], whole[0][-1:]) and torch.equal(shared[-5:], picture(1))
    assert torch.equal(shared[:1], tokens.id) and torch.equal(asked[:1], whole[1])
    assert len(asker(llm)(lessons()[2], tokens)[0]) == 0, "nothing is shared without a picture"


def test_given_answers_weigh_what_whole_rows_weigh(llm: CausalLM) -> None:
    tokens = concept()
    losses = llm.answer_losses(lessons(), tokens, asker(llm))
    for one, loss in zip(lessons(), losses, strict=True):
        rows = torch.cat(asker(llm)(one, tokens))
        ids = llm.answer(one.answer)
        states = llm.run("understand", (tokens,), torch.cat([rows, llm.table(ids)])[None])[0]
        logs = llm.head(states[len(rows) - 1 : -1]).log_softmax(-1)
        wanted = -logs.gather(1, ids[:, None])
        assert torch.isclose(loss, wanted.mean(), atol=1e-5)
        scored = llm.score(asker(llm)(one, tokens), (tokens,), [one.answer])
        assert torch.isclose(scored[0], -wanted.sum(), atol=1e-4)


def test_learning_in_pieces_has_the_gradients_of_the_whole(llm: CausalLM) -> None:
    found = []
    for at_once in (0, 1):
        tokens = concept()
        lengths = [20] * len(lessons())
        loss = llm.answers_loss(
            lessons(), tokens, asker(llm), lengths=lengths, most=10_000, at_once=at_once
        )
        loss.backward()
        assert tokens.gen.grad is None, "painting's part is not read"
        found.append((loss.detach(), tokens.id.grad, tokens.und.grad))
    for whole, piece in zip(*found, strict=True):
        assert whole is not None and piece is not None
        assert torch.allclose(whole, piece, atol=1e-5) and bool(whole.abs().sum() > 0)


def test_what_is_said_is_the_likeliest_token_each_time(llm: CausalLM) -> None:
    tokens, one = concept(), lessons()[0]
    with torch.no_grad():
        said = "".join(
            llm.say(asker(llm)(one, tokens), (tokens,), max_tokens=6, temperature=0.0, seed=0)
        )
        rows, ids = torch.cat(asker(llm)(one, tokens)), []
        for _ in range(6):
            state = llm.run("understand", (), rows[None], use_cache=False)[0, -1]
            ids.append(int(llm.head(state)[: llm.vocabulary].argmax()))
            rows = torch.cat([rows, llm.table(torch.tensor(ids[-1:]))])
    whole = llm.tokenizer.decode(ids[: ids.index(llm.end)] if llm.end in ids else ids)
    assert said and str(whole).lstrip().startswith(said.rstrip("\ufffd"))
