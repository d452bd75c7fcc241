"""Memory of the loader's workers over three epochs, as a slope; in a fresh process, whose pages they begin with.

python benchmarks/loader_memory.py DATASET BATCH_SIZE      one measurement, as JSON
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from loader_data import LoaderData
from torch.utils.data import DataLoader

from cope_prep.pipeline.loader import GopDataset

NUM_EPOCHS = 3
NUM_WORKERS = 2
WARM_UP_EPOCHS = 0.25
"""Left out of the slope."""
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def measure_memory(data: LoaderData, *, batch_size: int) -> dict:
    """Median RSS of each worker, and its slope."""
    command = [sys.executable, __file__, data.uri, str(batch_size)]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    for worker, row in enumerate(result["workers"]):
        print(
            f"   worker {worker}: RSS {row['rss_mib']} MiB, {row['rss_slope_mib_per_epoch']:+} MiB an epoch;"
            f" private {row['private_mib']} MiB, {row['private_slope_mib_per_epoch']:+} MiB an epoch",
            flush=True,
        )
    return result


def main() -> None:
    """One measurement: RSS of each worker at every batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("batch_size", type=int)
    arguments = parser.parse_args()
    dataset = GopDataset(arguments.dataset, batch_size=arguments.batch_size)
    loader = DataLoader(dataset, batch_size=None, num_workers=NUM_WORKERS, persistent_workers=True)
    rows = []
    for epoch in range(NUM_EPOCHS):
        dataset.set_epoch(epoch)
        for step, _ in enumerate(loader):
            workers = sorted(child.pid for child in multiprocessing.active_children() if child.pid)
            rows.append([epoch + step / len(dataset), *(value for pid in workers for value in _rss(pid))])
    table = np.array(rows)
    table = table[table[:, 0] >= WARM_UP_EPOCHS]
    results = []
    for worker in range(NUM_WORKERS):
        rss, shared = table[:, 1 + 2 * worker], table[:, 2 + 2 * worker]
        results.append(
            {
                "rss_mib": round(float(np.median(rss)), 1),
                "rss_slope_mib_per_epoch": round(float(np.polyfit(table[:, 0], rss, 1)[0]), 2),
                "private_mib": round(float(np.median(rss - shared)), 1),
                "private_slope_mib_per_epoch": round(float(np.polyfit(table[:, 0], rss - shared, 1)[0]), 2),
            }
        )
    print(json.dumps({"epochs": NUM_EPOCHS, "batches": len(rows), "workers": results}))


def _rss(pid: int) -> tuple[float, float]:
    """(resident, of it shared with other processes or files), MiB."""
    _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    return int(resident) * _PAGE_MIB, int(shared) * _PAGE_MIB


if __name__ == "__main__":
    main()
