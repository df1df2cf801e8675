"""A causal LM together with its loss, as one module: token ids in, loss out, and no logits in between.

One module, so that whatever wraps a model for several processes (DDP, FSDP2) sees loss and head inside its forward:
FSDP2 gathers the head of its root group there and nowhere else.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ctxforge.calibrate.objectives.cross_entropy import (
    IGNORE,
    TokenLosses,
    Weigher,
    sliced_cross_entropy,
    sliced_cross_entropy_of,
)
from ctxforge.calibrate.objectives.head import AffineForm, affine_form, causal_lm, refuse_sharded
from ctxforge.calibrate.objectives.restoration import Restored, after_layers, distance
from ctxforge.errors import UnsupportedError
from ctxforge.verification.head import SlicedHead

_CHECK_TOKENS = 64
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class LossModel(torch.nn.Module):
    """`forward` gives the loss of a batch; everything else of `model` is as it was.

    Args:
        model: a causal LM of transformers, or one that peft put adapters into.
        slice_rows: rows of hidden states per slice of the head; None for as many as fit 256 MiB of logits.

    Attributes:
        model: as given.
        form: "affine", or "own code" where the head is of another form or carries an adapter; None before the first
            batch.
    """

    def __init__(self, model: Any, slice_rows: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.slice_rows = slice_rows
        self.form: str | None = None
        self._affine: AffineForm | None = None
        self._head_names: tuple[str, ...] = ()

    def forward(
        self,
        input_ids: torch.Tensor,
        targets: torch.Tensor,
        denominator: float,
        *,
        weights: torch.Tensor | Weigher | None = None,
        restored: Restored | None = None,
        **inputs: Any,
    ) -> TokenLosses:
        """Loss of a batch.

        Args:
            input_ids: [B, L].
            targets: the token that each position predicts, [B, L]: shifted already (`next_tokens`), so that a sequence
                cut over processes keeps the target at its cut; `IGNORE` for none.
            denominator: see `counts.denominator`.
            weights: of the targets, [B, L], or a function of (index into the flattened batch, losses).
            restored: hidden states to be held to beside the loss.
            inputs: for the decoder: `position_ids`, `attention_mask`, ...

        Raises:
            UsageError: as `sliced_cross_entropy`.
            UnsupportedError: a head that was sharded by itself, or no hidden states to be held.
        """
        if restored is not None:
            inputs = {**inputs, "output_hidden_states": True}
        inner = causal_lm(self.model)
        output = inner.get_decoder()(input_ids=input_ids, **{"use_cache": False, "return_dict": True, **inputs})
        hidden = output.last_hidden_state
        refuse_sharded(inner)
        if self.form is None:
            self._learn_head(inner, type(output), hidden)
        layer = inner.get_output_embeddings()
        if self._affine is not None:
            found = sliced_cross_entropy(
                hidden,
                layer.weight,
                targets,
                denominator,
                bias=layer.bias,
                form=self._affine,
                weights=weights,
                slice_rows=self.slice_rows,
            )
        else:
            head, output_class = SlicedHead(inner), type(output)
            found = sliced_cross_entropy_of(
                hidden,
                lambda rows: head.logits(rows, output_class),
                [inner.get_parameter(name) for name in self._head_names],
                targets,
                denominator,
                vocabulary=_vocabulary(inner),
                weights=weights,
                slice_rows=self.slice_rows,
            )
        if restored is None:
            return found
        apart = distance(after_layers(output, "the model"), restored)
        return found._replace(loss=found.loss + restored.weight * apart / denominator, apart=apart.detach())

    def check(self) -> None:
        """Hold this module's losses to those of the model's own logits on a few tokens.

        Call it once before anything is sharded: a forward that does more between decoder and logits than its own head
        would train on a wrong loss.

        Raises:
            UnsupportedError: they differ, or decoder and head can't be told apart.
        """
        inner = causal_lm(self.model)
        ids = torch.tensor([[(7 + 7919 * i) % _vocabulary(inner) for i in range(_CHECK_TOKENS)]], device=inner.device)
        where = torch.arange(_CHECK_TOKENS, device=inner.device)[None]
        inputs = {"position_ids": where, "attention_mask": torch.ones_like(ids)}
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                stock = inner(input_ids=ids, use_cache=False, **inputs).logits[0, :-1].float()
                expected = F.cross_entropy(stock, ids[0, 1:], reduction="none")
                ours = self(ids, next_tokens(ids), 1.0, **inputs).losses[0, :-1]
            fine = bool((ours - expected).abs().max() <= _TOLERANCE.get(inner.dtype, 1e-4))
        # An architecture whose forward is built otherwise can fail in any way; each means the same to the user.
        except (TypeError, AttributeError, ValueError, RuntimeError, KeyError, IndexError):
            fine = False
        finally:
            self.train(training)
        if not fine:
            raise UnsupportedError(
                f"the head of {type(inner).__name__} can't be told from its decoder, and whole logits don't fit memory",
                "calibrate a model of another architecture",
            )

    def _learn_head(self, inner: Any, output_class: type[Any], hidden: torch.Tensor) -> None:
        self._affine = affine_form(inner, output_class)
        self.form = "own code" if self._affine is None else "affine"
        if self._affine is None:
            named = [(name, p) for name, p in inner.named_parameters() if p.requires_grad]
            with torch.enable_grad():
                row = hidden.detach().reshape(-1, hidden.shape[-1])[:1].requires_grad_()
                total = SlicedHead(inner).logits(row, output_class).float().sum()
                found = torch.autograd.grad(total, [p for _, p in named], allow_unused=True) if named else ()
            self._head_names = tuple(name for (name, _), grad in zip(named, found, strict=True) if grad is not None)


def next_tokens(input_ids: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """The targets of a batch: row t predicts token t + 1, and the last row nothing.

    Args:
        input_ids: [B, L].
        counted: which tokens are to be predicted, bool [B, L]; None for all. False for a document's first token keeps
            one document from predicting the next, and for prompts trains on answers alone.
    """
    targets = torch.full_like(input_ids, IGNORE)
    targets[:, :-1] = input_ids[:, 1:]
    if counted is not None:
        targets[:, :-1][~counted[:, 1:]] = IGNORE
    return targets


def next_weights(token_weights: torch.Tensor) -> torch.Tensor:
    """Weights of tokens [B, L] as weights of the rows that predict them: row t has that of token t + 1, the last 0."""
    return F.pad(token_weights[:, 1:], (0, 1))


def _vocabulary(model: Any) -> int:
    """Rows of the token embedding, which the head has as many outputs as."""
    return int(model.get_input_embeddings().weight.shape[0])
