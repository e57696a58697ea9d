"""What is kept on disk and where it comes from: names, blobs, manifests, sources, durable file operations.

Knows nothing of tensors or of the engine; imports none of the other packages.
"""
