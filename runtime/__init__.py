"""Hardware, fit, child processes, and the engine that answers on llama.cpp.

May import `quant`; knows nothing of HTTP, of the store, or of the terminal.
"""
