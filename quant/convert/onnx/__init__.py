"""Folders of ONNX Runtime GenAI as sources: the graph's weights by the names of Hugging Face, and their settings."""
