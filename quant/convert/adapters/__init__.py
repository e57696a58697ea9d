"""Adapters: PEFT's LoRA folders and GGUF files, to the GGUF file of an adapter by the plan of its base."""
