"""The property test of the converter: keys of every row's `config.json` changed, both sides asked (`__main__.py`)."""
