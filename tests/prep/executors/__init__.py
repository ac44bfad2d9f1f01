"""Where chunks are tokenized."""
