"""Blobs, manifests and files on their way, on disk; nothing is ever half there."""
