"""Parameters turned into checkpoints that other libraries read."""
