"""The commands of `packtrain`, a file for each noun: they parse, import a stage and call it."""
