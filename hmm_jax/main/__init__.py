"""The command `hmm_jax`: each of its commands is a file, whose imports of JAX wait for its call."""
