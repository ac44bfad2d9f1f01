"""Inputs that nobody meant: readers of files take them, or refuse them in words. `make fuzz` makes more."""
