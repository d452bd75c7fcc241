"""`cope-prep stats --html`: one file with everything, that opens without a network.

    DatasetStats ──> findings, tables, charts.py ──┐
    outliers ──> report_sheets.py (opens shards) ──┴──> templates/report.html ──> one HTML file

plotly.js, the style and the sheets are in the file itself (about 5 MB, and 0.3 MB a sheet). Whatever the template
prints is escaped and without credentials; ids and messages come from file names and stores.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.resources
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cope_prep.jobs.dashboard import report_tables as tables
from cope_prep.jobs.dashboard.report_sheets import DEFAULT_PER_FIGURE, Sheet, draw_sheets
from cope_prep.jobs.report_target import check_report_target
from cope_prep.pipeline import storage
from cope_prep.pipeline.findings import findings
from cope_prep.pipeline.finish import read_dataset_json
from cope_prep.pipeline.layout import Layout
from cope_prep.pipeline.redact import redacted
from cope_prep.pipeline.stats_records import DatasetStats
from cope_prep.schemas.errors import CopePrepError
from cope_prep.schemas.specs import SCHEMA_VERSION

_TEMPLATES = importlib.resources.files("cope_prep.jobs.dashboard") / "templates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One plotly figure of the page."""

    name: str
    """Id of its element."""
    title: str
    json: str
    """For Plotly.newPlot, safe inside a <script>."""


def write_report(
    layout: Layout,
    stats: DatasetStats,
    uri: str,
    *,
    sheets_per_figure: int = DEFAULT_PER_FIGURE,
    progress: Callable[[int, int], None] = lambda done, number: None,
) -> tuple[Sheet, ...]:
    """Draw the sheets of the first outliers, and publish the report; the sheets that it has or lacks.

    Raises:
        ConfigurationError: plotly or jinja2 is not installed.
        StorageError: the file cannot be written.
    """
    check_report_target(uri)
    sheets = draw_sheets(layout, stats, per_figure=sheets_per_figure, progress=progress)
    now = datetime.datetime.now(datetime.UTC)
    storage.publish_bytes(uri, render_report(layout, stats, sheets, now=now).encode())
    return sheets


def render_report(
    layout: Layout, stats: DatasetStats, sheets: Sequence[Sheet] = (), *, now: datetime.datetime
) -> str:
    """The page, as it is dated."""
    import jinja2
    import plotly.offline
    from markupsafe import Markup

    def shown(value: object) -> object:
        # Of every {{ expression }}: markup is ours, all else may hold a URL with a password.
        return value if isinstance(value, Markup) or not isinstance(value, str) else redacted(value)

    environment = jinja2.Environment(
        autoescape=True,
        finalize=shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def part(name: str) -> str:
        return (_TEMPLATES / name).read_text(encoding="utf-8")

    found = findings(stats)
    return environment.from_string(part("report.html")).render(
        stats=stats,
        title=_title(stats.dataset),
        now=now.strftime("%Y-%m-%d %H:%M UTC"),
        findings=found,
        style=Markup(part("report.css")),
        script=Markup(part("report.js")),
        plotly_js=Markup(_inside_script(plotly.offline.get_plotlyjs())),
        charts=_charts(stats),
        distributions=_distributions(stats),
        tiles=tables.tiles(stats, found),
        tables=tables.all_tables(stats),
        sheets=sheets,
        outliers=tables.outlier_tables(stats, sheets),
        specs=_specs(layout, stats),
        versions=_versions(layout, stats),
    )


def _title(dataset: str) -> str:
    """The last part of its URL."""
    shown = redacted(dataset).partition("?")[0]
    return shown.rstrip("/").rpartition("/")[2] or shown


def _charts(stats: DatasetStats) -> dict[str, Chart]:
    from cope_prep.jobs.dashboard import charts

    drawn = {
        "bytes": ("Bytes a second of video, by part", charts.bytes_figure(stats)),
        "sizes": ("Size against other forms of the same videos", charts.sizes_figure(stats)),
        "failures": ("Failed and partial videos by subset", charts.failures_figure(stats)),
        "questions": ("Questions by kind", charts.questions_figure(stats)),
        "tokens": ("Tokens a second of video", charts.token_figure(stats)),
        "codec": ("Codecs of the sources", charts.sources_figure(stats, "codec")),
        "resolution": ("Resolutions of the sources", charts.sources_figure(stats, "resolution")),
        "frame_rate": ("Frame rates of the sources", charts.sources_figure(stats, "frame_rate")),
    }
    return {name: _chart(f"chart-{name}", title, figure) for name, (title, figure) in drawn.items()}


def _distributions(stats: DatasetStats) -> list[Chart]:
    from cope_prep.jobs.dashboard.charts import distribution_figure
    from cope_prep.jobs.stats_words import titled

    names = dict.fromkeys(one.name for one in stats.distributions)
    return [_chart(f"distribution-{name}", titled(name), distribution_figure(stats, name)) for name in names]


def _chart(name: str, title: str, figure: Any) -> Chart:
    return Chart(name=name, title=title, json=_inside_script(figure.to_json()))


def _inside_script(text: str) -> Any:
    """Markup that cannot end the <script> it stands in; the same to a JSON or JavaScript reader."""
    from markupsafe import Markup

    return Markup(text.replace("</", "<\\/").replace("<!--", "<\\!--"))


def _specs(layout: Layout, stats: DatasetStats) -> list[tuple[str, str, str]]:
    """(stage, hash, settings as text) of the stages that have outputs."""
    specs = layout.specs
    parts = {"reencode": specs.encode, "extract": specs.extract, "shards": specs.shard}
    return [
        (stage, hashed, json.dumps(parts[stage].model_dump(mode="json"), indent=2))
        for stage, hashed in stats.spec_hashes.items()
    ]


def _versions(layout: Layout, stats: DatasetStats) -> list[tuple[str, str]]:
    found = [
        (
            "report by",
            f"cope-prep {importlib.metadata.version('cope-prep')}, Python {platform.python_version()}",
        ),
        ("schema version", str(SCHEMA_VERSION)),
    ]
    if stats.has_index:
        try:
            document = read_dataset_json(layout)
            made = document["versions"]
            text = ", ".join(f"{name} {made[name]}" for name in ("cope-prep", "av") if name in made)
            found.append(("shards by", f"{text}, schema version {document['schema_version']}"))
        except (CopePrepError, ValueError, KeyError, TypeError, OSError):
            found.append(("shards by", "unknown: dataset.json cannot be read"))
    return found
