"""Where models go: registries that take them."""
