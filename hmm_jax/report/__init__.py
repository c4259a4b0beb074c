"""Tables, plots and loss landscapes of runs."""
