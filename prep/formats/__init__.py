"""Input formats: each cuts a file into chunks and reads the records of one chunk.

A chunk's bounds are the format's own (bytes, rows) and depend on the file alone, so any number of workers tokenizes
the same chunks. Record numbers count from 0 at the chunk's first record; the caller knows how many came before.
"""
