"""What operators look at: counts, log lines, traces."""
