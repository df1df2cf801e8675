"""Tokenizers of several kinds, small enough to be made in a test."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ctxforge.sources import bundled_model
from ctxforge.verification.needles import bundled_words
from ctxforge.verification.tasks.grammar import sentences, vocabulary
from tests.verification.tiny import byte_tokenizer

_TEXTS = [
    "The pass key is 12345. Remember it.",
    "The number of ... is. One of the numbers of. All 4 numbers of are. The code of is.",
    "line well-known: REGISTER_CONTENT is <1>\n",
    "The first sentence of the text above is: The 10 most common words of the list are 1. 2. 3. 4. 5. 6. 7. 8. 9. 0.",
]


def _corpus() -> list[str]:
    words = [word for slot in vocabulary().values() for word in slot]
    return [*itertools.islice(sentences(), 4000), *words, *bundled_words(), *_TEXTS]


@cache
def bytes_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(str(Path(bundled_model())))


@cache
def bytes_with_bos_and_eos() -> Any:
    return byte_tokenizer(bos=True)


@cache
def word_level() -> Any:
    """Whole words and single digits; spells nothing else, and knows no white space."""
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    core.train_from_iterator(_corpus(), trainers.WordLevelTrainer(vocab_size=5000, special_tokens=["<unk>"]))
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


@cache
def sentence_piece() -> Any:
    """BPE over text with a space put in front, spaces as a letter, and BOS: what Llama's tokenizer does."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    alphabet = [chr(n) for n in range(33, 127)] + ["▁", "\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    core.train_from_iterator(_corpus(), trainer)
    core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


KINDS = {
    "bytes": bytes_tokenizer,
    "bytes with BOS and EOS": bytes_with_bos_and_eos,
    "words": word_level,
    "SentencePiece-like": sentence_piece,
}
# What whole words cannot spell: random letters and made-up words. The grid's needles ask for their spaces back, too.
UNSPELLABLE = {"words": {"uuid", "variable-tracking", "frequent-words", "common-words", "kv-grid"}}
