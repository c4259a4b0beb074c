"""A package, so that files of one name in two rooms are two modules."""
