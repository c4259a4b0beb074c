"""Networks behind the `Model` contract: the only room that knows flax."""
