"""Block-quantization kernels."""
