"""One rank of a run of two processes: python one_rank.py FOLDER RANK.

`in{rank}.pt` holds this rank's share of a batch and distillers; `out{rank}.pt` gets what each of them gave.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.tid_core.distillers.real_batch import inside_head, leaves


def attempt(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Terms and metrics of each distiller, and the gradients that its loss gives to features, heads and own layers."""
    found = []
    for distiller in case["distillers"]:
        student = leaves(case["student"])
        torch.manual_seed(3)
        result = distiller(student, case["teacher"], case["targets"])
        result.total.backward()
        given = {f"features/{level}": feature.grad for level, feature in enumerate(student.features)}
        given |= {f"heads/{name}": head.grad for name, head in student.head_outputs.items()}
        given |= {f"towers/{index}": feature.grad for index, feature in enumerate(inside_head(student))}
        layers = {name: parameter.grad for name, parameter in distiller.named_parameters()}
        terms = {name: term.detach() for name, term in result.terms.items()}
        found.append({"terms": terms, "metrics": result.metrics, "given": given, "layers": layers})
    return found


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    # weights_only=False: the file is written by the test itself and holds dataclasses and modules.
    torch.save(attempt(torch.load(folder / f"in{rank}.pt", weights_only=False)), folder / f"out{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
