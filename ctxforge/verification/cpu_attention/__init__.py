"""Causal prefill without a cache on a CPU: attention without [L, L] matrices, where stock attention makes them.

Stock SDPA is near what the hardware can do where attention is plain and fully causal: those layers keep its kernel
(docs/decisions/0011-cpu-attention.md). Elsewhere transformers does far more work than is needed:

- a sliding window or a chunk becomes an explicit [L, L] mask, and every masked score is computed all the same. Here
  each block of rows attends to the band of keys that its mask allows;
- learned sinks (gpt-oss) and soft caps (Gemma 2) take the eager path, with whole [H, L, L] scores.

Exact: every allowed score is computed. The mask rule is the model's own, evaluated once a forward.
"""

from ctxforge.verification.cpu_attention.bands import Band, plan
from ctxforge.verification.cpu_attention.blocks import blocked_attention
from ctxforge.verification.cpu_attention.switch import ATTENTION_NAME, cpu_attention, worth_it

__all__ = ["ATTENTION_NAME", "Band", "blocked_attention", "cpu_attention", "plan", "worth_it"]
