"""Quantized weights of a source: how their bytes are read, and which GGML type holds them as they are."""
