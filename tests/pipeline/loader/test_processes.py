"""Real processes: distributed ranks finish together, killed workers are noticed, and nothing is left behind."""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.loader import GopDataset, QADataset

WORLD_SIZE = 4


def start(program: str, *arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def finish(processes: list[subprocess.Popen]) -> list[str]:
    """What they printed; if one fails, the others, which would wait for it, are killed."""
    outputs = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=240)
            assert process.returncode == 0, err
            outputs.append(out)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return outputs


RANK = """
    import os, sys
    import torch, torch.distributed as dist
    from torch.utils.data import DataLoader
    from cope_prep.pipeline.loader import GopDataset

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=world_size)
    torch.set_num_threads(1)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    data = GopDataset(sys.argv[1], batch_size=2, last=sys.argv[3])
    loader = DataLoader(data, batch_size=None, num_workers=1)
    for epoch in range(3):
        data.set_epoch(epoch)
        for batch in loader:
            model(batch.residual.float().mean().reshape(1, 1)).sum().backward()  # all ranks meet here
            print(epoch, *batch.info.keys)
    dist.destroy_process_group()
"""


@pytest.mark.parametrize("last", ["drop", "wrap"])
def test_four_ranks_with_uneven_shards_finish_three_epochs(small: Layout, tmp_path: Path, last: str):
    """90 samples do not divide by 4 ranks of 2; every rank gets as many batches, and none waits for ever."""
    ranks = [
        start(
            RANK, small.dataset, str(tmp_path / "meet"), last,
            RANK=str(rank), WORLD_SIZE=str(WORLD_SIZE), LOCAL_RANK=str(rank),
        )
        for rank in range(WORLD_SIZE)
    ]  # fmt: skip
    outputs = [out.splitlines() for out in finish(ranks)]
    steps = {"drop": 11, "wrap": 12}[last]
    assert [len(lines) for lines in outputs] == [3 * steps] * WORLD_SIZE
    for epoch in range(3):
        first = epoch * steps
        seen = [key for lines in outputs for line in lines[first : first + steps] for key in line.split()[1:]]
        assert len(seen) == steps * 8
        assert len(set(seen)) == {"drop": 88, "wrap": 90}[last]


@pytest.mark.parametrize("kind", [GopDataset, QADataset])
def test_spawned_workers_give_the_same_batches(small: Layout, kind: type[GopDataset] | type[QADataset]):
    """Spawned: the dataset travels by pickle."""
    data = kind(small.dataset, batch_size=8)
    batches = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    seen = [batch.info.keys for batch in batches]
    assert len(seen) == len(data)
    assert seen == [batch.info.keys for batch in data]
    assert len(pickle.dumps(data)) < 1 << 20


def test_killed_worker_is_an_error_and_not_a_hang(small: Layout):
    batches = iter(DataLoader(GopDataset(small.dataset), batch_size=None, num_workers=1, prefetch_factor=1))
    next(batches)
    (worker,) = torch.multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"worker .*killed|exited unexpectedly"):
        list(batches)


TRAINING = """
    import multiprocessing, os, signal, sys
    from torch.utils.data import DataLoader
    from cope_prep.pipeline.loader import GopDataset, ShardReader

    data = GopDataset(sys.argv[1], batch_size=4, reader=ShardReader(cache_dir=sys.argv[2]))
    loader = DataLoader(data, batch_size=None, num_workers=2, prefetch_factor=4)
    held = []
    for batch in loader:
        held.append(batch)  # shared memory in use on both sides
        if len(held) == 5:
            print(" ".join(str(child.pid) for child in multiprocessing.active_children()))
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_training_leaves_no_shared_memory_and_no_files(small: Layout, tmp_path: Path):
    shards = Path(small.folder("shards"))
    before = sorted(shards.iterdir())
    cache = tmp_path / "cache"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with start(TRAINING, small.dataset, str(cache), TMPDIR=str(temporary)) as training:
        out, _ = training.communicate(timeout=240)
    assert training.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in out.split()]
    assert len(workers) == 2
    wait_for_end(workers)
    assert sorted(shards.iterdir()) == before
    # torch names its segments torch_<pid>_...; other tests' processes have theirs.
    names = tuple(f"torch_{pid}_" for pid in (training.pid, *workers))
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(names)]
    assert not [path for path in temporary.rglob("*") if path.is_file()]
    assert not [path for path in cache.rglob("*") if path.is_file()]


def wait_for_end(pids: list[int]) -> None:
    """Orphaned workers notice by themselves that their parent is gone, within some 5 s."""
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        with os.fdopen(handle) as watched:
            ready, _, _ = select.select([watched], [], [], 60)
            assert ready, f"worker {pid} outlives its parent"
