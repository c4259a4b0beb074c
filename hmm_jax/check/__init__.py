"""The laws that methods and operators obey, whether built in or your own."""
