"""What operators look at: metrics for Prometheus, readiness."""
