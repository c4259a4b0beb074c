"""Tables, plots and landscapes of runs."""
