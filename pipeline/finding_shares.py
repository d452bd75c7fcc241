"""The form that most findings have: a share of videos or windows is high, in all or in a single subset.

A Count says how many of how many have some property, in all and by subset. `share_finding` makes a sentence of it:

    in all above the threshold                 "4.1 % of the windows (1,234 of 30,000) ...", and where it is most
    in a subset, though not in all             "In subset X 12 % of the windows ..., against 0.1 % in the others."
    below                                      nothing
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from cope_prep.pipeline.stats_records import DatasetStats, Distribution, GroupStats

Severity = Literal["problem", "warning", "note", "good"]

STANDS_OUT = 3.0
"""A subset with this many times the share of the others is named: less than that is how sources differ anyway."""
MIN_IN_SUBSET = 5
"""Fewer videos or windows of a subset are chance, not a property of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing to know of a dataset before it is used."""

    rule: str
    """Name of the rule, as in docs/stats.md."""
    severity: Severity
    """`problem`: look before anything is trained on it; `warning`: worth a look; `note`: good to know; `good`."""
    text: str
    """One sentence, with the numbers."""
    advice: str = ""
    """What to do about it; empty if nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many of how many."""

    what: str
    """Of what, in the plural: `windows`."""
    number: int
    of: int
    by_subset: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Subset -> the same two numbers; empty if there is but one subset."""

    @property
    def share(self) -> float:
        """0 to 1; 0 of nothing."""
        return self.number / self.of if self.of else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareRule:
    """From which share on something is said, and what."""

    name: str
    warning: float
    problem: float
    """Above 1: never a problem."""
    does: str
    """What the counted do, after `4.1 % of the windows (1 of 2)`."""
    advice: str
    severity: Severity = "warning"
    """Below `problem`."""


def share_finding(rule: ShareRule, count: Count) -> Finding | None:
    """What a rule says of a count; None if nothing."""
    worst = _standing_out(count)
    if count.number and count.share >= rule.warning:
        where = ""
        if worst is not None:
            subset, share, others = worst
            where = f"; in subset {named(subset)} {percent(share)}, in the others {percent(others)}"
        text = (
            f"{percent(count.share)} of the {count.what} ({_of(count.number, count.of)}) {rule.does}{where}."
        )
        return Finding(
            rule=rule.name,
            severity="problem" if count.share >= rule.problem else rule.severity,
            text=text,
            advice=rule.advice,
        )
    if worst is None or worst[1] < rule.warning:
        return None
    subset, share, others = worst
    numbers = _of(*count.by_subset[subset])
    return Finding(
        rule=rule.name,
        severity=rule.severity,
        text=(
            f"In subset {named(subset)} {percent(share)} of the {count.what} ({numbers}) {rule.does},"
            f" against {percent(others)} in the others."
        ),
        advice=rule.advice,
    )


def _standing_out(count: Count) -> tuple[str, float, float] | None:
    """(subset, its share, that of the others) of the subset that most exceeds the others, if it does by much."""
    best: tuple[str, float, float] | None = None
    for subset, (number, of) in count.by_subset.items():
        num_others, of_others = count.number - number, count.of - of
        if number < MIN_IN_SUBSET or not of_others:
            continue
        share, others = number / of, num_others / of_others
        if share >= STANDS_OUT * others and (best is None or share > best[1]):
            best = (subset, share, others)
    return best


def count_groups(
    stats: DatasetStats,
    what: str,
    *,
    number_of: Callable[[GroupStats], int],
    of: Callable[[GroupStats], int],
) -> Count:
    """A Count of two figures of the groups."""
    parts = {} if len(stats.subsets) < 2 else {group.subset or "": group for group in stats.subsets}
    return Count(
        what=what,
        number=number_of(stats.total),
        of=of(stats.total),
        by_subset={subset: (number_of(group), of(group)) for subset, group in parts.items()},
    )


def count_values(
    stats: DatasetStats, name: str, *, what: str, above: float | None = None, up_to: float | None = None
) -> Count:
    """A Count of the values of a distribution on one side of an edge of its histogram.

    Raises:
        ValueError: the histogram has no such edge.
    """

    def beyond(one: Distribution) -> tuple[int, int]:
        edges, counts = one.histogram.edges, one.histogram.counts
        if above is not None:
            return sum(counts[edges.index(above) + 1 :]), one.count
        assert up_to is not None
        return sum(counts[: edges.index(up_to) + 1]), one.count

    found = {one.subset: beyond(one) for one in stats.distributions if one.name == name}
    number, of = found.pop(None, (0, 0))
    parts = {subset or "": numbers for subset, numbers in found.items()}
    return Count(what=what, number=number, of=of, by_subset=parts if len(parts) > 1 else {})


def percent(share: float) -> str:
    """`4.1 %`, with two digits below 10 %."""
    value = 100 * share
    if value >= 99.95 or value == 0:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 1 else f"{value:.2g} %"


def named(subset: str | None) -> str:
    """A subset in a sentence or table; None is all of them. No two have the same name."""
    if subset is None:
        return "all"
    return f'"{subset}"' if subset in ("all", "(none)") else subset or "(none)"


def _of(number: int, of: int) -> str:
    return f"{number:,} of {of:,}"
