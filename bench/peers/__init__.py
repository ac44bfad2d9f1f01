"""Peers measured in an environment of their own: each script prints what it found as JSON, and imports none of ours.

Their types are not checked, since the environment that checks ours has none of what they import.
"""
