"""How long the API takes to import, and that it does so without torch: `python benchmarks/import_time.py [RUNS]`.

Each run is a fresh interpreter that imports `api.app` and builds the application; the goal is under 1.5 s.
Exits with 1 if torch (or another part of the training) was imported, or if the median is over the goal.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

GOAL_SECONDS = 1.5
FORBIDDEN = ("torch", "torchvision", "matplotlib", "pycocotools", "hotcoco")
PROGRAM = f"""
import json, sys, time
begun = time.perf_counter()
import api.app
imported = time.perf_counter()
api.app.app
print(json.dumps({{
    "import": imported - begun, "build": time.perf_counter() - imported,
    "forbidden": [name for name in {FORBIDDEN} if name in sys.modules],
}}))
"""


def measure() -> dict[str, object]:
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    runs = [measure() for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 5)]
    imports = [float(str(run["import"])) for run in runs]
    builds = [float(str(run["build"])) for run in runs]
    forbidden = runs[0]["forbidden"]
    median = statistics.median(imports)
    print(f"import api.app: median {median:.2f} s of {len(runs)} runs (goal < {GOAL_SECONDS} s)")
    print(f"build the application: median {statistics.median(builds):.2f} s")
    print(f"of the training imported: {forbidden or 'nothing'}")
    return 1 if forbidden or median >= GOAL_SECONDS else 0


if __name__ == "__main__":
    sys.exit(main())
