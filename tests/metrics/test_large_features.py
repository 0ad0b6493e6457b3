"""Fifty thousand points of Inception's width are reduced in less than 2 GiB."""

import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np, torch
from genflow.metrics import MomentSum, kernel_distance, measure

torch.set_num_threads(1)
folder, maps = sys.argv[1], []
for name, count in (("x", 50_000), ("y", 5_000)):
    file = f"{folder}/{name}.npy"
    out = np.lib.format.open_memmap(file, "w+", np.float32, (count, 2048))
    generator = torch.Generator().manual_seed(count)
    for start in range(0, count, 5000):
        out[start : start + 5000] = torch.randn(5000, 2048, generator=generator).numpy()
    out.flush()
    del out
    maps.append(torch.from_numpy(np.load(file, mmap_mode="c")))

x, y = maps
found = measure(x, y, ["frechet", "coverage"], prefix="FD-random", repeats=0, most=10_000)
kid, _ = kernel_distance(x, y, subsets=5)
status = Path("/proc/self/status").read_text()  # getrusage's peak would be the parent's
peak = next(x for x in status.splitlines() if x.startswith("VmHWM")).split()[1]
print(json.dumps({
    "frechet": found["metrics"]["frechet"]["value"],
    "points": found["metrics"]["coverage"]["points"],
    "kid": kid,
    "GiB": int(peak) / 2**20,
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_features_of_fifty_thousand_images_fit_into_two_gib(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["GiB"] < 2
    assert found["points"] == [10_000, 5_000]
    assert abs(found["kid"]) < 1e-3
    # Both covariances are one; the bias of white noise is about d² (1/n + 1/m) / 4.
    assert found["frechet"] == pytest.approx(2048**2 * (1 / 50_000 + 1 / 5_000) / 4, rel=0.15)
