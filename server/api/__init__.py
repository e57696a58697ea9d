"""One module per dialect; each decodes a body into a request of `runtime.messages` and writes the answer back."""
