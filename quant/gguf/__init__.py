"""GGUF files: headers read within bounds, values, a streaming writer, the architectures."""
