"""Families of models: each is a table of its tensors and their transforms, with the sizes and entries that it reads."""
