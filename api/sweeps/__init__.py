"""Sweeps: from a sweep to its jobs, and back to one report."""
