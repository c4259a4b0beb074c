"""The laws that methods and operators obey, also those of one's own."""
