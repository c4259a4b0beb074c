"""What one client does, and how its work is lifted over all clients."""
