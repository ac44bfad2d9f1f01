"""A checkpoint to the weights that others load: Hugging Face and TurboMind."""
