"""Attention systems that a checkpoint can be given: what each is, its parameters, and its dense reference.

The fast forms, which run inside the checkpoint, are in templates/modeling. Importing this package imports no torch.
"""

from ctxforge.attention.attach import Attached, attach, describe, refuse_attached
from ctxforge.attention.registry import attachments, find_attachment, read_parameters
from ctxforge.attention.types import Attachment, Parameter, Situation, Value

__all__ = [
    "Attached",
    "Attachment",
    "Parameter",
    "Situation",
    "Value",
    "attach",
    "attachments",
    "describe",
    "find_attachment",
    "read_parameters",
    "refuse_attached",
]
