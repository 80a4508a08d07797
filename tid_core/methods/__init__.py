"""The methods of distillation as data: what they are, and their settings. The losses are in `tid_core.distillers`."""

from typing import Literal

from tid_core.methods.features import CwdSpec, DefeatSpec, FgdSpec, FgfiSpec, FitnetSpec, FrsSpec, MgdSpec, PkdSpec
from tid_core.methods.heads import BckdSpec, CrosskdSpec, LdSpec, PgdSpec, TarSpec, TbdSpec
from tid_core.methods.info import HEADS_ALONE, METHODS, MethodInfo, Need
from tid_core.methods.tid import TidSpec

__all__ = [
    "HEADS_ALONE",
    "METHODS",
    "BckdSpec",
    "CrosskdSpec",
    "CwdSpec",
    "DefeatSpec",
    "FgdSpec",
    "FgfiSpec",
    "FitnetSpec",
    "FrsSpec",
    "LdSpec",
    "Method",
    "MethodInfo",
    "MgdSpec",
    "Need",
    "PgdSpec",
    "PkdSpec",
    "TarSpec",
    "TbdSpec",
    "Teaching",
    "TidSpec",
]

Teaching = Literal[
    "tid", "fitnet", "fgfi", "defeat", "fgd", "mgd", "cwd", "pkd", "frs", "pgd", "ld", "crosskd", "bckd", "tbd", "tar"
]
Method = Literal[Teaching, "none"]
