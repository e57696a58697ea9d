"""From a published checkpoint to a plan of GGUF tensors and metadata."""
