"""Two workers on one ledger, one of them killed while it scores."""

import os
from pathlib import Path
import signal
import subprocess
import sys
import tempfile
import time

from measure import write_results

ROOT = Path(__file__).parents[1]
WORKER = ROOT / "tests" / "search" / "worker.py"


def main(options):
    sys.path.insert(0, str(WORKER.parent))
    from worker import SPACE

    from genflow.search.study import StudyLedger

    budget, results = options.budget or 120, {}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            place = str(Path(folder) / "ledger")
            both = [
                subprocess.Popen(
                    [sys.executable, str(WORKER), place, str(budget), str(100 * seed + k), "0.02"],
                    env=environment,
                )
                for k in (0, 1)
            ]
            ledger = StudyLedger(place, SPACE.record())
            while ledger.finished() < budget // 4:
                time.sleep(0.02)
            both[0].send_signal(signal.SIGKILL)
            both[0].wait()
            lost = len([t for t in ledger.study.trials if t.state.name == "RUNNING"])
            began = time.perf_counter()
            code = both[1].wait()
            entries = StudyLedger(place, SPACE.record()).entries()
            schedules = [e.schedule for e in entries]
            unique, legal = len(set(schedules)), sum(map(SPACE.legal, schedules))
            took = time.perf_counter() - began
            found = {"scored": len(entries), "unique": unique, "legal": legal}
            results[seed] = found | {"lost": lost, "seconds": round(took, 1), "exit": code}

    write_results("search-workers", {"cases": results}, options)
