"""Checkpoints of other systems turned into parameters under the spec's names."""
