"""Server-side computation: searches, training and pseudo-data."""
