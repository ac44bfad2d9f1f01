"""Packed shards to checkpoints, on torch, Transformers and DeepSpeed."""
