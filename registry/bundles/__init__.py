"""Bundles: models in one file, an OCI image layout in a tar, written and read as a stream."""
