"""Calibration: a short fine-tune that makes an extension real.

A finished checkpoint and data go in, a finished checkpoint comes out. Submodules: data (documents to a token cache),
adapters (what is trained, and its exact merge), objectives (losses in little memory), positions (which token stands
where, and who sees whom).
"""
