"""Sweeps: one base job, axes of values, and a job for every combination beside the baselines that they share.

Free of torch.
"""

from tid_core.sweep.expand import InvalidPoint, Role, SweepInvalid, SweepJob, expand, in_points, locate
from tid_core.sweep.spec import MAX_AXES, MAX_JOBS, SEED, SweepSpec

__all__ = [
    "MAX_AXES",
    "MAX_JOBS",
    "SEED",
    "InvalidPoint",
    "Role",
    "SweepInvalid",
    "SweepJob",
    "SweepSpec",
    "expand",
    "in_points",
    "locate",
]
