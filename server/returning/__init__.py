"""A model of the store as a folder in Hugging Face's layout, for `lm export --format safetensors`."""
