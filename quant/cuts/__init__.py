"""Cuts: plans of GGUF files with fewer tokens or fewer layers.

A cut takes whole rows and whole tensors away. The rest is copied as it is, in the type that it has, so nothing is
quantized a second time.
"""
