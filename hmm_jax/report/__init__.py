"""Tables, plots and pages of runs, and loss landscapes."""
