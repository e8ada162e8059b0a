"""What the other rooms stand on; each module is a door of its own."""
