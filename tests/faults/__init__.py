"""Injected faults: real processes that are killed, starved of disk, or given damaged files. `make faults` runs them."""
