"""The tokenizer of BAGEL and of its descendants: Qwen2.5's, as their prompts want it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnipersona_cli.errors import MissingError
from omnipersona_cli.family.checkpoint import silently
from op_bagel.config import SpecialTokens


class QwenTokenizer:
    """Qwen2.5's byte-level BPE without its template and special tokens. ``backend`` names what its
    files are fetched with."""

    unnamed = "<sks>"

    def __init__(self, folder: Path, *, backend: str) -> None:
        import transformers

        untyped: Any = transformers
        self.hint = f"op backends fetch {backend}"
        try:
            with silently():
                if (folder / "tokenizer.json").is_file():
                    path = str(folder / "tokenizer.json")
                    self.tokens: Any = untyped.PreTrainedTokenizerFast(tokenizer_file=path)
                elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
                    self.tokens = untyped.Qwen2Tokenizer.from_pretrained(folder)
                else:
                    raise MissingError(
                        f"{folder} has no tokenizer: tokenizer.json is missing", hint=self.hint
                    )
        except MissingError:
            raise
        except Exception as error:  # its reader raises a bare one
            raise MissingError(
                f"the tokenizer in {folder} is broken: {error}", hint=self.hint
            ) from error
        self.folder = folder

    def encode(self, text: str) -> list[int]:
        """Ids of a text; words that look like special tokens are text."""
        found = self.tokens(text, add_special_tokens=False, split_special_tokens=True)
        return list(found.input_ids)

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without special tokens."""
        return str(self.tokens.decode(ids, skip_special_tokens=True))

    def special_tokens(self) -> SpecialTokens:
        """The four tokens that frame turns and pictures; MissingError where one is unknown."""
        names = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
        known = self.tokens.get_vocab()
        lost = [name for name in names if name not in known]
        if lost:
            raise MissingError(f"the tokenizer in {self.folder} lacks {lost[0]}", hint=self.hint)
        bos, eos, start, end = (known[name] for name in names)
        return SpecialTokens(
            bos_token_id=bos, eos_token_id=eos, start_of_image=start, end_of_image=end
        )
