"""Communication without a server: topologies, schedules, graphs and consensus."""
