"""What the stages agree on: the TOML, the files between the stages, and the command line."""
