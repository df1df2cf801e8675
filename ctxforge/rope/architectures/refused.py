"""Types without a row, and why: no positions to extend, or positions that nothing in a checkpoint can rescale."""

from __future__ import annotations

_ENCODER = (
    "an encoder with learned absolute positions, usable as a decoder only by name: not a language model to extend"
)
_DECODER = (
    "the decoder of an encoder-decoder model with learned absolute positions: both tables and the cross-attention"
)
_DECODER += " would have to be extended together"
_SINUSOID = "absolute sinusoidal positions, recomputed by the code: no weight and no config key rescales them"
_RECURRENT = "a recurrent state-space model: it has no positions, and no attention to extend"
_TABLE = "its rotary table is fixed in the code (base 10000, one row a position): no config key scales it"
_RELATIVE = "positions are learned relative biases: there is no rotation to rescale"
_NOPE = "its attention layers have no positions (NoPE): there is nothing to rescale"

REFUSED: dict[str, str] = {
    "bart": _DECODER,
    "bert": _ENCODER,
    "bert-generation": _ENCODER,
    "big_bird": _ENCODER,
    "bigbird_pegasus": _DECODER,
    "blenderbot": _DECODER,
    "blenderbot-small": _DECODER,
    "blt": "four stacks rotate by bytes or by patches, each with its own config: there is no one length to extend",
    "camembert": _ENCODER,
    "codegen": _TABLE,
    "cpmant": _RELATIVE,
    "ctrl": _SINUSOID,
    "data2vec-text": _ENCODER,
    "electra": _ENCODER,
    "ernie": _ENCODER,
    "falcon_mamba": _RECURRENT,
    "git": "a captioner whose text decoder has learned absolute positions sized for captions: not a language model to"
    " extend",
    "gptj": _TABLE,
    "inkling2_loop_text": _RELATIVE,
    "inkling2_text": _RELATIVE,
    "inkling_text": _RELATIVE,
    "jamba": _NOPE,
    "kimi_linear": _NOPE,
    "mamba": _RECURRENT,
    "mamba2": _RECURRENT,
    "marian": _SINUSOID,
    "mbart": _DECODER,
    "megatron-bert": _ENCODER,
    "musicgen": _SINUSOID,
    "musicgen_decoder": _SINUSOID,
    "musicgen_melody": _SINUSOID,
    "musicgen_melody_decoder": _SINUSOID,
    "mvp": _DECODER,
    "nemotron_h": _NOPE,
    "pegasus": _SINUSOID,
    "plbart": _DECODER,
    "prophetnet": _DECODER,
    "recurrent_gemma": "every attention layer sees a window of 2048 tokens only, and its RoPE admits no scaling:"
    " nothing to extend",
    "reformer": "axial position tables whose shape is fixed by the config: not a RoPE, and not one row a position",
    "rembert": _ENCODER,
    "roberta": _ENCODER,
    "roberta-prelayernorm": _ENCODER,
    "roc_bert": _ENCODER,
    "roformer": "an encoder whose rotary table is fixed in the code (base 10000): no config key scales it",
    "rwkv": _RECURRENT,
    "trocr": _DECODER,
    "whisper": _DECODER,
    "xglm": _SINUSOID,
    "xlm": _ENCODER,
    "xlm-roberta": _ENCODER,
    "xlm-roberta-xl": _ENCODER,
    "xlnet": "relative sinusoidal positions inside the attention (Transformer-XL): no weight and no config key rescales"
    " them",
    "xlstm": "a recurrent model: it has no positions, and no attention to extend",
    "xmod": _ENCODER,
    "zamba": _NOPE,
}
