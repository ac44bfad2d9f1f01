"""Checkpoints of other trainers, and plain weights, as what an export starts from."""
