"""The commands of `lm`, one module each; `cli/main.py` imports one when it is called."""
