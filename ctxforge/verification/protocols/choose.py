"""A protocol by name, with everything that any of them needs in one object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ctxforge.errors import UsageError
from ctxforge.verification.protocols import PROTOCOLS
from ctxforge.verification.protocols.reference import one_pass
from ctxforge.verification.protocols.result import ProtocolResult
from ctxforge.verification.protocols.rolling import TextLength, lm_eval_rolling
from ctxforge.verification.protocols.sliding import STRIDE, pi, yarn, yarn_truncated
from ctxforge.verification.protocols.stream import longlora
from ctxforge.verification.protocols.windows import Source, Tokens, WindowScorer, as_scorer


@dataclass(frozen=True)
class ProtocolSettings:
    """What the protocols leave open.

    Attributes:
        bos: the tokenizer's BOS id: YaRN's protocol and lm-eval's put it before windows as their scripts do.
        eos: the tokenizer's EOS id, which lm-eval takes where there is no BOS.
        prefix: ids that the tokenizer puts before a text: the reference and PI's protocol use these.
        stride: tokens between the starts of two windows.
        concatenate: LongLoRA: one stream of all documents.
        batch_size: LongLoRA: windows averaged together.
    """

    bos: int | None = None
    eos: int | None = None
    prefix: tuple[int, ...] = ()
    stride: int = STRIDE
    concatenate: bool = True
    batch_size: int = 1


def run_protocol(
    name: str,
    source: Source,
    documents: Sequence[Tokens],
    lengths: Sequence[int],
    settings: ProtocolSettings | None = None,
    *,
    text_lengths: Sequence[TextLength] = (),
) -> list[ProtocolResult]:
    """Measure `documents` under the protocol `name`, one result a length, in the order of `lengths`.

    Args:
        name: one of `PROTOCOLS`.
        source: computes losses.
        documents: token ids without special tokens.
        lengths: window lengths in tokens.
        settings: see `ProtocolSettings`.
        text_lengths: words and bytes of every document; lm-eval's protocol needs them.

    Raises:
        UsageError: no such protocol, or what the protocol itself refuses.
    """
    chosen = settings or ProtocolSettings()
    scorer = as_scorer(source)
    if name not in PROTOCOLS:
        raise UsageError(f"there is no perplexity protocol {name!r}.", f"Use one of {', '.join(PROTOCOLS)}.")
    if name == "one-pass":
        return one_pass(scorer, documents, lengths, prefix=chosen.prefix)
    if name == "yarn":
        return yarn_truncated(scorer, documents, lengths, bos=chosen.bos)
    at = _AT_LENGTH[name]
    return [at(scorer, documents, length, chosen, text_lengths) for length in lengths]


def _yarn(
    scorer: WindowScorer, documents: Sequence[Tokens], length: int, s: ProtocolSettings, _texts: Sequence[TextLength]
) -> ProtocolResult:
    return yarn(scorer, documents, length, bos=s.bos, stride=s.stride)


def _pi(
    scorer: WindowScorer, documents: Sequence[Tokens], length: int, s: ProtocolSettings, _texts: Sequence[TextLength]
) -> ProtocolResult:
    return pi(scorer, documents, length, stride=s.stride, prefix=s.prefix)


def _longlora(
    scorer: WindowScorer, documents: Sequence[Tokens], length: int, s: ProtocolSettings, _texts: Sequence[TextLength]
) -> ProtocolResult:
    return longlora(scorer, documents, length, stride=s.stride, concatenate=s.concatenate, batch_size=s.batch_size)


def _lm_eval(
    scorer: WindowScorer, documents: Sequence[Tokens], length: int, s: ProtocolSettings, texts: Sequence[TextLength]
) -> ProtocolResult:
    prefix = s.eos if s.bos is None else s.bos
    if prefix is None:
        raise UsageError(
            "lm-eval's protocol needs a BOS or an EOS token, and the tokenizer has neither.",
            "Use another protocol, or give the tokenizer a BOS token.",
        )
    return lm_eval_rolling(scorer, documents, texts, length, prefix_token=prefix)


_AtLength = Callable[[WindowScorer, Sequence[Tokens], int, ProtocolSettings, Sequence[TextLength]], ProtocolResult]
_AT_LENGTH: dict[str, _AtLength] = {"yarn-sliding": _yarn, "pi": _pi, "longlora": _longlora, "lm-eval": _lm_eval}
