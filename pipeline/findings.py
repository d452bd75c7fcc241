"""What to look at in a dataset: its statistics in words, as far as they are unusual.

    DatasetStats ──rules──> problems, warnings, notes ──> the same, worst first; or that nothing is unusual

Every rule has its threshold, and the reason for it, in finding_videos.py or finding_samples.py; docs/stats.md lists
them. A rule that has nothing to go by (no index yet, no ledger) says nothing.
"""

from __future__ import annotations

from cope_prep.pipeline.finding_samples import sample_findings
from cope_prep.pipeline.finding_shares import Finding, Severity
from cope_prep.pipeline.finding_videos import video_findings
from cope_prep.pipeline.stats_records import DatasetStats

__all__ = ["SEVERITIES", "Finding", "Severity", "findings"]

SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "note", "good")


def findings(stats: DatasetStats) -> tuple[Finding, ...]:
    """All that the rules say, worst first; with neither problem nor warning, `good` says so first."""
    found = [*video_findings(stats), *sample_findings(stats)]
    found.sort(
        key=lambda finding: SEVERITIES.index(finding.severity)
    )  # stable: then in the order of the rules
    if all(finding.severity == "note" for finding in found):
        return (*_nothing_unusual(stats), *found)
    return tuple(found)


def _nothing_unusual(stats: DatasetStats) -> tuple[Finding, ...]:
    total = stats.total
    if total.num_videos:
        text = f"Nothing is unusual about {total.num_videos:,} videos and {total.num_windows:,} windows."
    elif sum(stage.num_ok + stage.num_partial + stage.num_failed for stage in stats.stages):
        text = "Nothing is unusual so far; there are no samples in shards yet to look at."
    else:
        text = "There is nothing to look at yet: no video has been worked on."
    severity: Severity = "good" if total.num_videos or stats.stages else "note"
    return (Finding(rule="nothing-unusual", severity=severity, text=text),)
