"""The policy of a box: which models may come in and be loaded, by licence, source and size."""
