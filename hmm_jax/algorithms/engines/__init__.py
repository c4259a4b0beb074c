"""Training loops that several methods share."""
