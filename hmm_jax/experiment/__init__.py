"""From a config to a finished run: data, methods, training, evaluation, checkpoints."""
