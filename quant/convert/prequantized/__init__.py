"""Sources whose weights are quantized: how they are, by configuration and tensors, and never by a name."""
