"""Work of a server on data of its own: searches, training and pseudo-data."""
