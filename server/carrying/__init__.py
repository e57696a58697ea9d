"""Models carried: pushed to registries, in bundles, between boxes; and the care of the store that holds them."""
