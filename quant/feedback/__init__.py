"""Error feedback: ordinary blocks whose products with a layer's inputs are close to the source's."""
