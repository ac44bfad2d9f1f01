"""What an input may take; each is some kilobytes at most."""

SECONDS = 10.0
"""Of processor time."""
BYTES = 1 << 30
"""Of memory."""
