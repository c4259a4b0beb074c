"""Networks of one's own: any flax module, linen or nnx, as a `Model`."""
