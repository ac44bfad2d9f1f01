"""Configs of other trainers, read without running them, as pipeline TOMLs; no key of theirs vanishes."""
