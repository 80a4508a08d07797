"""What the text of an mmdetection config says, read without running it.

Checkpoints keep the config they were trained with as text in their `meta`. It tells what no tensor shows: the stride's
place in a bottleneck, how images were normalised, how FCOS codes its boxes.
"""

import re
from ast import literal_eval
from dataclasses import dataclass


@dataclass(frozen=True)
class Normalisation:
    """How an image becomes the network's input: (pixel 0..255 - mean) / std, channels in the order of the input."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    rgb: bool


STYLES = {
    "pytorch": Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), rgb=True),
    "caffe": Normalisation((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), rgb=False),
}
"""What the public configs use with either style of ResNet."""


class ConfigText:
    """Settings by name, wherever in the text they stand; a name with two values is as good as unknown."""

    def __init__(self, text: str = "") -> None:
        self.text = text

    def values(self, name: str) -> set[str]:
        """Every value given to `name`, as source text without spaces and quotes."""
        found = re.findall(
            rf"(?<![\w.]){name}['\"]?\s*[=:]\s*(\[[^\]]*\]|\([^)]*\)|'[^']*'|\"[^\"]*\"|[^,)\s]+)", self.text
        )
        return {re.sub(r"[\s'\"]", "", value) for value in found}

    def value(self, name: str) -> str | None:
        found = self.values(name)
        return found.pop() if len(found) == 1 else None

    def normalisation(self) -> Normalisation | None:
        """The one normalisation of the config; None if it gives none, or several."""
        means, stds = (self._triples(name) for name in ("mean", "std"))
        orders = self.values("to_rgb") | self.values("bgr_to_rgb")
        if not len(means) == len(stds) == len(orders) == 1:
            return None
        return Normalisation(means.pop(), stds.pop(), rgb=orders == {"True"})

    def _triples(self, name: str) -> set[tuple[float, ...]]:
        triples: set[tuple[float, ...]] = set()
        for value in self.values(name):
            try:
                numbers = tuple(float(number) for number in literal_eval(value))
            except (TypeError, ValueError, SyntaxError):
                continue  # another setting of that name, such as the std of an initialisation
            if len(numbers) == 3:
                triples.add(numbers)
        return triples
