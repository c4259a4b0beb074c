"""Local training of one client, and its mapping over all clients."""
