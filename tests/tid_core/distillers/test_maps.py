"""The picture of the areas, read back pixel by pixel where it must say something."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tid_core.distillers.areas import find_areas
from tid_core.maps import draw_maps
from tid_core.methods import TidSpec

VERMILLION, BLUE = (0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)


def _count(path: Path, colour: tuple[int, int, int], opacity: float) -> int:
    """Pixels that are `colour` over a white image."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    mixed = [opacity * c + (1 - opacity) * 255 for c in colour]
    return int((np.abs(pixels - mixed) <= 3).all(-1).sum())


def _draw(scene: Any, path: Path, *, index: int) -> None:
    areas = find_areas(scene.student, scene.teacher, scene.targets, TidSpec())
    image = torch.full((3, 90, 75), 255, dtype=torch.uint8)
    draw_maps(image, areas, scene.targets[index], path, size=(48, 40), index=index, classes=["a", "b", "c"], title="x")


def test_the_regions_are_in_the_picture(make_scene: Callable[..., Any], tmp_path: Path) -> None:
    """Image 0 has high-value points; image 1 has no ground truth and is all low."""
    scene = make_scene(seed=1)
    _draw(scene, tmp_path / "some.png", index=0)
    _draw(scene, tmp_path / "none.png", index=1)
    high = [_count(tmp_path / f"{name}.png", VERMILLION, 0.7) for name in ("some", "none")]
    low = [_count(tmp_path / f"{name}.png", BLUE, 0.35) for name in ("some", "none")]
    assert high[0] > 500
    assert high[1] == 0
    assert low[1] > 2 * low[0] > 0


def test_matplotlib_is_imported_only_to_draw() -> None:
    program = "import sys, tid_core.maps; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
