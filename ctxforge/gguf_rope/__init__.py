"""Giving a converted GGUF the rotation that its checkpoint's config means, where conversion loses it."""

from ctxforge.gguf_rope.patch import Patched as Patched
from ctxforge.gguf_rope.patch import patch_gguf as patch_gguf

__all__ = ["Patched", "patch_gguf"]
