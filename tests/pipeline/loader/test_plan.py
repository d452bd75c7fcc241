"""Steps and state: ranks get equal numbers of disjoint slices, and a state leads back to its place."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cope_prep.pipeline.loader.plan import Progress, StepPlan, from_state, to_state
from cope_prep.schemas.errors import ConfigurationError

IDENTITY = {"kind": "gops", "seed": 0, "num_units": 100}


def plans(world_size: int, **changes) -> list[StepPlan]:
    values = {"num_units": 100, "consumed": 0, "batch_size": 3, "last": "drop", **changes}
    return [StepPlan(rank=rank, world_size=world_size, **values) for rank in range(world_size)]


def seen(world_size: int, **changes) -> list[int]:
    """Positions of all global batches, one after the other."""
    ranks = plans(world_size, **changes)
    return [
        position
        for step in range(ranks[0].num_steps)
        for plan in ranks
        for position in plan.positions(step).tolist()
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("consumed", [0, 5, 97])
def test_dropping_gives_whole_global_batches_in_order(world_size: int, consumed: int):
    positions = seen(world_size, consumed=consumed)
    plan = plans(world_size, consumed=consumed)[0]
    assert positions == list(range(consumed, consumed + len(positions)))
    assert len(positions) % (3 * world_size) == 0
    assert plan.num_dropped == 100 - consumed - len(positions) < 3 * world_size
    assert plan.num_repeated == 0


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("consumed", [0, 5, 97, 100])
def test_wrapping_shows_every_unit_and_says_what_it_repeats(world_size: int, consumed: int):
    positions = seen(world_size, consumed=consumed, last="wrap")
    plan = plans(world_size, consumed=consumed, last="wrap")[0]
    num_left = 100 - consumed
    assert positions[:num_left] == list(range(consumed, 100))
    assert positions[num_left:] == list(range(plan.num_repeated))
    assert plan.num_dropped == 0


def test_wrapping_a_tiny_dataset_fills_the_batch():
    plan = StepPlan(num_units=2, consumed=0, batch_size=5, world_size=1, rank=0, last="wrap")
    assert plan.positions(0).tolist() == [0, 1, 0, 1, 0]
    assert (plan.num_steps, plan.num_repeated) == (1, 3)


@pytest.mark.parametrize(
    "changes", [{"batch_size": 0}, {"rank": 2}, {"rank": -1}, {"last": "pad"}, {"consumed": -1}]
)
def test_impossible_plans_fail(changes: dict):
    values = {"num_units": 9, "consumed": 0, "batch_size": 1, "world_size": 2, "rank": 0, "last": "drop"}
    with pytest.raises(ConfigurationError):
        StepPlan(**{**values, **changes})


def test_state_survives_json_and_leads_back():
    progress = Progress(epoch=3, consumed=20, num_steps=2, global_batch=6)
    state = json.loads(json.dumps(to_state(progress, IDENTITY, [{"name": "a", "num_units": 100}])))
    assert from_state(state, IDENTITY) == progress
    assert progress.next_consumed == 32


def test_states_of_workers_add_up():
    """As torchdata nests them, with two batches handed on since its last snapshot."""
    workers = {
        f"worker_{worker}": {
            "dataset_state": to_state(
                Progress(epoch=1, consumed=10, num_steps=steps, global_batch=4, worker=worker, num_workers=3),
                IDENTITY,
                [],
            )
        }
        for worker, steps in enumerate([5, 5, 4])
    }
    state = {"_snapshot": {"_worker_snapshots": workers}, "_steps_since_snapshot": 2}
    assert from_state(state, IDENTITY).next_consumed == 10 + (5 + 5 + 4 + 2) * 4


def test_state_lacking_a_worker_fails():
    part = Progress(epoch=0, consumed=0, worker=1, num_workers=3)
    states = {name: to_state(part, IDENTITY, []) for name in ("a", "b")}
    with pytest.raises(ConfigurationError, match="workers"):
        from_state(states, IDENTITY)


def test_state_of_another_order_fails_and_says_what_differs():
    state = to_state(Progress(epoch=0, consumed=0), IDENTITY, [])
    with pytest.raises(ConfigurationError, match=r"seed was 0, is 7"):
        from_state(state, {**IDENTITY, "seed": 7})


@pytest.mark.parametrize("state", [{}, {"epoch": 1}, {"model": {"weight": np.zeros(2)}}])
def test_foreign_state_fails(state: dict):
    with pytest.raises(ConfigurationError, match="not one of ours"):
        from_state(state, IDENTITY)


def test_state_of_a_newer_version_fails():
    state = {**to_state(Progress(epoch=0, consumed=0), IDENTITY, []), "cope_prep.loader": 99}
    with pytest.raises(ConfigurationError, match="version 99"):
        from_state(state, IDENTITY)
