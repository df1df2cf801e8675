"""Read, edit and write checkpoints as bytes: no model is built here, and no weight is read that doesn't change.

`read_checkpoint` looks at a source, `fetch` makes it local and safetensors, `write_checkpoint` makes the new folder.
"""

from ctxforge.checkpoint.dtypes import DTYPE_BITS, EDITABLE_DTYPES
from ctxforge.checkpoint.files import file_sha256, human_bytes
from ctxforge.checkpoint.integrity import verify_integrity
from ctxforge.checkpoint.jsonio import dump_json_like, parse_json_object
from ctxforge.checkpoint.patch import read_tensor, read_tensor_bytes
from ctxforge.checkpoint.read import fetch, read_checkpoint
from ctxforge.checkpoint.rewrite import write_safetensors_stream
from ctxforge.checkpoint.types import (
    Checkpoint,
    Edits,
    FileInfo,
    Progress,
    ResampleRows,
    ScaleRows,
    TensorEdit,
    TensorInfo,
    WriteEstimate,
    WriteReport,
)
from ctxforge.checkpoint.write import check_output, estimate_write, write_checkpoint

__all__ = [
    "DTYPE_BITS",
    "EDITABLE_DTYPES",
    "Checkpoint",
    "Edits",
    "FileInfo",
    "Progress",
    "ResampleRows",
    "ScaleRows",
    "TensorEdit",
    "TensorInfo",
    "WriteEstimate",
    "WriteReport",
    "check_output",
    "dump_json_like",
    "estimate_write",
    "fetch",
    "file_sha256",
    "human_bytes",
    "parse_json_object",
    "read_checkpoint",
    "read_tensor",
    "read_tensor_bytes",
    "verify_integrity",
    "write_checkpoint",
    "write_safetensors_stream",
]
