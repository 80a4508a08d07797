"""The scaled-out service as processes that can be hurt: shared by `benchmarks/chaos.py` and `tests/faults`."""
