"""What the quickstart trains on: a generator of small instruction tasks, and the files it writes."""

from prep.quickstart.files import write_quickstart

__all__ = ["write_quickstart"]
