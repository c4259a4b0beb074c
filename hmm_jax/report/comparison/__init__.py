"""Runs side by side: paired differences over seeds, one table and one figure."""
