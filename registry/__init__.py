"""Models on disk and the sources they come from: names, blobs, manifests, downloads, durable file operations.

Knows nothing of tensors or of the engine; imports none of the other packages.
"""
