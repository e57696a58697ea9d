"""ONNX files: the graph of a model read within bounds, and where its weights lie."""
