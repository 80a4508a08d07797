"""Reading an mmdetection checkpoint without running anything it holds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from tid_core.importing.config_text import ConfigText
from tid_core.importing.refusal import ImportRefused

State = dict[str, Tensor]


class _Inert:
    """Stands for a training log's objects in a checkpoint: takes whatever it is given, keeps and does nothing."""

    def __new__(cls, *ignored: object) -> "_Inert":  # noqa: ARG004
        return super().__new__(cls)

    def __setstate__(self, ignored: object) -> None:
        pass


_INERT = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Int64DType",
    "__builtin__.getattr",
    "builtins.getattr",
    "_codecs.encode",
)
"""Names that mmengine's curves of a training bring along; none of these is imported or called."""


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    state: State
    config: ConfigText
    classes: list[str] | None
    """Names of the outputs in their order, as the file's `meta` has them."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Tensors, config and class names of a file that mmdetection 2.x or 3.x wrote, read with `weights_only=True`.

    Raises:
        ImportRefused: `unreadable`, `unsafe` or `no_state_dict`.
    """
    if not path.is_file():
        raise ImportRefused("unreadable", f"{path}: there is no such file")
    loaded = _load(path)
    meta: Any = {}
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        meta, loaded = loaded.get("meta"), loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        detail = "holds no state_dict; an mmdetection checkpoint is a mapping with `state_dict` and `meta`"
        raise ImportRefused("no_state_dict", f"{path}: {detail}")
    state = {str(key).removeprefix("module."): value for key, value in loaded.items()}
    return Checkpoint(path, state, ConfigText(_config(meta)), _classes(meta))


def _load(path: Path) -> Any:
    with torch.serialization.safe_globals([(_Inert, name) for name in _INERT]):
        try:
            return torch.load(path, "cpu", weights_only=True)
        except UnpicklingError as error:
            unsafe = re.search(r"GLOBAL (\S+)", str(error))
            if unsafe is None:
                raise _unreadable(path, error) from error
            detail = (
                f"{path}: holds an object of {unsafe[1]}, which could run code; "
                "keep its `meta` and `state_dict` alone, as mmdetection's publish_model.py does"
            )
            raise ImportRefused("unsafe", detail) from error
        except Exception as error:  # an unpickler fed with something else raises whatever it likes
            raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ImportRefused:
    why = type(error).__name__  # torch's own texts advise to read the file unsafely
    return ImportRefused("unreadable", f"{path}: not a checkpoint that can be read safely ({why})")


def _config(meta: Any) -> str:
    """mmdetection 2.x calls it `config`, 3.x `cfg`."""
    texts = (meta.get(name) for name in ("config", "cfg")) if isinstance(meta, Mapping) else ()
    return next((text for text in texts if isinstance(text, str)), "")


def _classes(meta: Any) -> list[str] | None:
    """mmdetection 2.x keeps `CLASSES`, 3.x `dataset_meta` with `CLASSES` or `classes`."""
    for place in (meta, meta.get("dataset_meta") if isinstance(meta, Mapping) else None):
        for name in ("CLASSES", "classes"):
            found = place.get(name) if isinstance(place, Mapping) else None
            if isinstance(found, str):  # ('car') in a config is no tuple
                return [found]
            if isinstance(found, (list, tuple)) and found and all(isinstance(one, str) for one in found):
                return list(found)
    return None
