"""The service under random faults: no job lost, none counted twice, every student the same bits.

    uv run python benchmarks/chaos.py --faults 200 --seed 1 [--database postgresql] [--workers 2]

Starts the whole service (API, workers, Valkey, a database), keeps a few tiny jobs under way, and hurts it every one to
three seconds, sometimes twice at once. Then it waits until every accepted job has ended and compares each with one that
nothing happened to. The seed gives the kinds and the pauses; what they meet depends on the moment.
"""

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from random import Random
from threading import Lock

from benchmarks.fire import clock, disk
from benchmarks.fire.databases import Postgres, Sqlite
from benchmarks.fire.faults import KINDS, SERVER_KINDS, TAKE_AN_ATTEMPT, Fault, NoTarget, Scene
from benchmarks.fire.fleet import Fleet
from benchmarks.fire.load import Load
from tid_core.data.synthetic import write_demo_data

log = logging.getLogger("chaos")

DISK_MIB = 1024
AT_ONCE = 3
TWICE = 0.15
RARELY = {"job cancelled": 0.15}  # a cancelled job shows least
END_SECONDS = 900.0


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # in order: nothing of the service stays
    if not disk.inside() and disk.can_mount() and not (arguments.database == "postgresql" and os.geteuid()):
        disk.enter()
    root = Path(tempfile.mkdtemp(prefix="tid-chaos-"))
    log_file = arguments.log or root / "chaos.log"
    logging.basicConfig(filename=log_file, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    print(f"events: {log_file}, logs of the service: {root}/home/logs", flush=True)
    write_demo_data(root / "data" / "digits", images=12, seed=1)
    home = root / "home"
    artifacts = home / "artifacts" / "jobs"
    if disk.inside():
        disk.mount(artifacts, DISK_MIB)
    database = Postgres() if arguments.database == "postgresql" else Sqlite(home / "tid.db")
    with Fleet(home, root / "data", database, workers=arguments.workers) as fleet:
        scene = Scene(fleet, clock=clock.build(root), disk=artifacts if disk.inside() else None)
        bad = Chaos(scene, arguments.seed, arguments.database).run(arguments.faults)
    if disk.inside():
        disk.unmount(artifacts)
    if bad == 0 and arguments.log:
        shutil.rmtree(root, ignore_errors=True)
    return 1 if bad else 0


class Chaos:
    def __init__(self, scene: Scene, seed: int, database: str) -> None:
        self.scene, self.seed = scene, seed
        self.kinds = _possible(KINDS | (SERVER_KINDS if database == "postgresql" else {}), scene)
        self.done: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self._lock = Lock()
        self.load = Load(scene)

    def run(self, num_faults: int) -> int:
        """How many things are wrong."""
        began = time.monotonic()
        reference = self.load.reference()
        print(f"the undisturbed job took {time.monotonic() - began:.0f} s", flush=True)
        self.load.start()
        self._hurt(num_faults)
        self.load.finish(END_SECONDS)
        verdict = self.load.judge(reference)
        self._print_table()
        wrong = [*verdict.complaints, *self._taken(verdict.outcomes)]
        for line in wrong:
            log.error("%s", line)
            print(line)
        print(f"attempts: {', '.join(f'{count} {outcome}' for outcome, count in verdict.outcomes.most_common())}")
        told = f"faults: {self.done.total()}, jobs: {verdict.jobs}, lost: {verdict.lost}, doubled: {verdict.doubled}"
        print(f"{told}, wrong: {verdict.wrong} ({time.monotonic() - began:.0f} s)")
        return len(wrong)

    def _taken(self, outcomes: Counter[str]) -> list[str]:
        """Attempts that no fault can have taken."""
        taken, may = outcomes["lost"] + outcomes["crashed"], sum(self.done[kind] for kind in TAKE_AN_ATTEMPT)
        return [f"{taken} attempts were lost or crashed, by {may} faults that take one at most"] if taken > may else []

    def _hurt(self, num_faults: int) -> None:
        dice, began, number = Random(self.seed), time.monotonic(), 0
        under_way: set[Future[None]] = set()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            while number - self.missed.total() < num_faults or under_way:
                under_way = {future for future in under_way if not future.done()}
                if len(under_way) >= AT_ONCE or number - self.missed.total() >= num_faults:
                    time.sleep(0.1)
                    continue
                time.sleep(0.1 if dice.random() < TWICE else dice.uniform(1.0, 3.0))
                (kind,) = dice.choices(list(self.kinds), [RARELY.get(kind, 1.0) for kind in self.kinds])
                number += 1
                under_way.add(pool.submit(self._fault, number, kind, self.kinds[kind]))
                if number % 5 == 0:
                    told = f"{number}/{num_faults} faults, {self.load.progress()}, {time.monotonic() - began:.0f} s"
                    print(told, flush=True)

    def _fault(self, number: int, kind: str, fault: Fault) -> None:
        log.info("fault %d begins: %s", number, kind)
        try:
            told = fault(self.scene, Random(f"{self.seed}-{number}"))
        except NoTarget:
            log.info("fault %d: %s met nothing", number, kind)
            counter = self.missed
        except Exception:
            log.exception("fault %d: %s failed", number, kind)
            counter = self.missed
        else:
            log.info("fault %d: %s", number, told)
            counter = self.done
        with self._lock:
            counter[kind] += 1

    def _print_table(self) -> None:
        print(f"\n{'fault':32} {'done':>5} {'met nothing':>12}")
        for kind in self.kinds:
            print(f"{kind:32} {self.done[kind]:5} {self.missed[kind]:12}")
        print()


def _possible(kinds: dict[str, Fault], scene: Scene) -> dict[str, Fault]:
    unable = {
        "artifact disk full": scene.disk is None and "this user may not mount",
        "clock off by an hour": scene.clock is None and "there is no C compiler",
    }
    for kind, why in unable.items():
        if why and kind in kinds:
            print(f"left out: {kind} ({why})")
    return {kind: fault for kind, fault in kinds.items() if not unable.get(kind)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=30, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="gives the kinds and the pauses")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--log", type=Path, help="where to write every event; the rest is then deleted after a success")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
