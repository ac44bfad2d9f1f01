"""Configs of XTuner 0.1, a file for each part of them."""
