"""Loading, partitioning, corruption and augmentation of data."""
