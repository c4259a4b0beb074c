"""One published method a file, each an `Algorithm`."""
