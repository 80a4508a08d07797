"""Checkpoints of other projects, turned into files that `{file: ...}` weights take."""
