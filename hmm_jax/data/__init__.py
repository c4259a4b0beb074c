"""Loaders, partitions and augmentation; siblings never import each other."""
