"""A text as the documents that published perplexity protocols are run on."""

from __future__ import annotations

from typing import Any

from ctxforge.verification.onepass import OnePass
from ctxforge.verification.protocols import ProtocolResult, ProtocolSettings, run_protocol, text_length
from ctxforge.verification.settings import VerifySettings
from ctxforge.verification.text import TokenText

# A sliding protocol on a document of one window would slide nowhere.
_SLIDING = ("yarn-sliding", "pi", "longlora")


def run_on_text(
    name: str,
    runner: OnePass,
    tokenizer: Any,
    tokens: TokenText,
    lengths: tuple[int, ...],
    settings: VerifySettings,
) -> list[ProtocolResult]:
    """Run protocol `name` on consecutive stretches of the text, as many as there are windows.

    Stretches have the target length; for sliding protocols twice that, where the text is long enough.

    Args:
        name: one of `PROTOCOLS`.
        runner: the model.
        tokenizer: for BOS and EOS, and for the words and bytes that lm-eval divides by.
        tokens: the text.
        lengths: window lengths in tokens; sliding ones run at the last alone, which is the target.
        settings: for the number of windows.

    Raises:
        UsageError: what the protocol itself refuses.
    """
    target = lengths[-1]
    size = 2 * target if name in _SLIDING else target
    size = min(size, len(tokens.body))
    count = max(1, min(settings.documents, len(tokens.body) // size))
    documents = [tokens.body[i * size : (i + 1) * size] for i in range(count)]
    texts = [text_length(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)) for ids in documents]
    chosen = ProtocolSettings(bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id, prefix=tokens.prefix)
    where = lengths[-1:] if name in (*_SLIDING, "lm-eval") else lengths
    return run_protocol(name, runner, documents, where, chosen, text_lengths=texts)
