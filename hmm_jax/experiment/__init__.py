"""Experiments: from a config to a finished run, with evaluation and checkpoints."""
