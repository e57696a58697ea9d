"""From a GGUF file back to the tensors and the settings that Hugging Face's programs load."""
