"""One rank of a two-process run, for test_tid_loss: python one_rank.py FOLDER RANK."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from tid_core.catalogue import DETECTORS
from tid_core.distillers.tid import TidDistiller
from tid_core.methods import TidSpec
from tid_core.spec import LossSpec


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    # weights_only=False: the file is written by the test itself and holds dataclasses.
    batch = torch.load(folder / f"in{rank}.pt", weights_only=False)
    info = DETECTORS["fcos_conv5_tiny"]
    found = []
    for settings in batch["cases"]:
        features = [f.clone().requires_grad_() for f in batch["student"].features]
        distiller = TidDistiller(TidSpec(**settings), LossSpec(), student=info, teacher=info)
        result = distiller(replace(batch["student"], features=features), batch["teacher"], batch["targets"])
        result.total.backward()
        terms = {name: term.detach() for name, term in result.terms.items()}
        found.append({"terms": terms, "grads": [f.grad for f in features]})
    torch.save(found, folder / f"out{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
