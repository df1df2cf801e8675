"""How a long sequence's training step is kept in memory, and how much that is before it is run.

`checkpointing` keeps one tensor a layer and computes the rest again, `offload` moves that one to the processor's
memory, `tiled_mlp` splits an MLP over the sequence, `eight_bit` is an optimiser with small states. `estimate` says what
a step takes, by `rehearsal` of it without data, measured by `meter`; `ways` says what would fit where it does not.
Torch comes with the first module that needs it, not with this package.
"""
