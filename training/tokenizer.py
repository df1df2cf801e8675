"""A byte-level tokenizer: one id per UTF-8 byte, the id being the byte's value, plus three specials.

Why: it needs no training data, its embedding is tiny, any text decodes back exactly, and the length of a text
in tokens is its length in bytes, so tests and demos can place things exactly.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = 256, 257, 258
VOCAB = 259


def byte_alphabet() -> dict[str, int]:
    """The printable character that the ByteLevel step writes for each byte, with the byte as its id."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in set(plain)]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(rest)}


def build(length: int) -> PreTrainedTokenizerFast:
    """The tokenizer, told that the model's window is `length`."""
    inner = Tokenizer(models.BPE(vocab=byte_alphabet(), merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=length,
        clean_up_tokenization_spaces=False,
        add_bos_token=False,
    )


def save(folder: Path, length: int) -> None:
    """Write the tokenizer under the class name that every transformers release with fast tokenizers knows."""
    build(length).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.pop("backend", None)  # a key of transformers 5 only
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    check(folder)


def check(folder: Path) -> None:
    """Raise unless what `AutoTokenizer` loads from `folder` is lossless with one id per byte."""
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(folder)
    assert len(tok) == VOCAB, len(tok)
    for text in [
        "A b.",
        " The number of fox is 12345.",
        "a  b\n\n c\t'd' ,e .",
        "naïve — “x” 日本 🙂",
        "x" * 200,
    ]:
        ids = tok(text).input_ids
        assert ids == list(text.encode()), text
        assert tok.decode(ids) == text, text
    assert (tok.bos_token_id, tok.eos_token_id, tok.pad_token_id) == (BOS, EOS, PAD)


if __name__ == "__main__":
    check(Path(sys.argv[1]))
