"""InternEvo's checkpoints: read into Hugging Face directories, and written from them."""
