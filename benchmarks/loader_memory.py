"""Memory of the loader's workers over three epochs, as a slope."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
from loader_data import LoaderData
from torch.utils.data import DataLoader

from cope_prep.pipeline.loader import GopDataset

NUM_EPOCHS = 3
NUM_WORKERS = 2
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def measure_memory(data: LoaderData, *, batch_size: int) -> dict:
    """RSS of each worker at every batch, and its slope once a quarter of the first epoch is over."""
    dataset = GopDataset(data.uri, batch_size=batch_size)
    loader = DataLoader(dataset, batch_size=None, num_workers=NUM_WORKERS, persistent_workers=True)
    others = {child.pid for child in multiprocessing.active_children()}
    rows = []
    for epoch in range(NUM_EPOCHS):
        dataset.set_epoch(epoch)
        for step, _ in enumerate(loader):
            workers = [
                child.pid
                for child in multiprocessing.active_children()
                if child.pid is not None and child.pid not in others
            ]
            rows.append(
                (epoch + step / len(dataset), *(value for pid in sorted(workers) for value in _rss(pid)))
            )
    table = np.array(rows)
    late = table[table[:, 0] >= 0.25]
    results = []
    for worker in range(NUM_WORKERS):
        rss, shared = late[:, 1 + 2 * worker], late[:, 2 + 2 * worker]
        row = {
            "rss_mib": round(float(np.median(rss)), 1),
            "rss_slope_mib_per_epoch": round(float(np.polyfit(late[:, 0], rss, 1)[0]), 2),
            "private_mib": round(float(np.median(rss - shared)), 1),
            "private_slope_mib_per_epoch": round(float(np.polyfit(late[:, 0], rss - shared, 1)[0]), 2),
        }
        results.append(row)
        print(
            f"   worker {worker}: RSS {row['rss_mib']} MiB, {row['rss_slope_mib_per_epoch']:+} MiB an epoch;"
            f" private {row['private_mib']} MiB, {row['private_slope_mib_per_epoch']:+} MiB an epoch",
            flush=True,
        )
    return {"epochs": NUM_EPOCHS, "batches": len(rows), "workers": results}


def _rss(pid: int) -> tuple[float, float]:
    """(resident, of it shared with other processes or files), MiB."""
    _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    return int(resident) * _PAGE_MIB, int(shared) * _PAGE_MIB
