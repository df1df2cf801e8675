"""Positions other than RoPE: learned tables and ALiBi, with the same stages as `ctxforge.rope`."""
