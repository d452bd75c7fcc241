"""QADataset: questions with the GOPs of their videos, in one global order, for fine-tuning.

A video's primitives are stored once and asked about many times: a batch holds each GOP once, whatever number of
its questions need it, and a worker keeps the records of the last videos for their next questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np

from cope_prep.pipeline.loader.batch import DELTA, PICTURE, RUN_FIELDS, QABatch, Skipped
from cope_prep.pipeline.loader.buffer import Buffer
from cope_prep.pipeline.loader.catalog import Catalog
from cope_prep.pipeline.loader.collate import Row, fill_gops, gop_arrays
from cope_prep.pipeline.loader.filters import GopFilter
from cope_prep.pipeline.loader.gops import (
    geometry_of,
    gop_row,
    identities,
    load_sample,
    single_part,
    with_filter,
)
from cope_prep.pipeline.loader.mix import OpenMix, Source, open_mix
from cope_prep.pipeline.loader.order import DEFAULT_SHUFFLE, Shuffle, compact
from cope_prep.pipeline.loader.plan import LastBatch
from cope_prep.pipeline.loader.primitives import residual_scale
from cope_prep.pipeline.loader.questions import (
    QuestionPlan,
    QuestionTexts,
    plan_questions,
    questions_uri,
    texts_folder,
)
from cope_prep.pipeline.loader.reader import ShardReader
from cope_prep.pipeline.loader.samples import SampleStore
from cope_prep.pipeline.loader.stream import InfoMaker, OnError, StreamDataset, logger
from cope_prep.pipeline.token_counts import TokenCounts
from cope_prep.schemas.errors import ConfigurationError, CopePrepError


class QADataset(StreamDataset[QABatch]):
    """Batches of questions with the GOPs of their videos, from one dataset or from a mix of several."""

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int = 1,
        key_frames: int = 1,
        window: int | None = None,
        max_gops: int | None = None,
        span_s: tuple[float, float] | None = None,
        where: GopFilter | None = None,
        mix: str | None = None,
        questions_per_visit: int = 1,
        seed: int = 0,
        shuffle: Shuffle | None = DEFAULT_SHUFFLE,
        last: LastBatch = "drop",
        on_error: OnError = "raise",
        rank: int | None = None,
        world_size: int | None = None,
        tokens: TokenCounts | None = None,
        reader: ShardReader | None = None,
        keep_bytes: int = 256 << 20,
    ) -> None:
        """
        As GopDataset, and:
        batch_size: questions of one rank's batch.
        max_gops: of a longer video, so many GOPs, spread evenly.
        span_s: only the GOPs that show something of [start, end) seconds of their video.
        where: leaves out whole videos.
        mix: LLaVA-NeXT mix YAML that chooses among the questions; for a mix of datasets, each part has its own.
        questions_per_visit: so many questions of a video stay side by side in the order, and in a batch: its GOPs
            are then decoded once for all of them. 1 mixes best.
        keep_bytes: records that a worker keeps for the next questions about their videos.

        Raises:
            ConfigurationError: as GopDataset, or there are no questions about these videos.
        """
        if mix is not None:
            source = _with_mix(source, mix)
        opened = open_mix(with_filter(source, where), per_video=True)
        self.geometry = geometry_of(opened.folders, window=window, key_frames=key_frames)
        if max_gops is not None and max_gops < 1:
            raise ConfigurationError(f"max_gops {max_gops}", "must be 1 or more")
        if questions_per_visit < 1:
            raise ConfigurationError(f"questions_per_visit {questions_per_visit}", "must be 1 or more")
        self._duration_s = _durations_s(opened.catalog, fps=self.geometry.fps)
        catalog = opened.catalog.take(_wanted_gops(opened.catalog, max_gops, span_s, fps=self.geometry.fps))
        self._scale = residual_scale(self.geometry.residual_spec)
        self._tokens = tokens or TokenCounts()
        reader = reader or ShardReader()
        chunk_bytes = (shuffle or DEFAULT_SHUFFLE).chunk_bytes
        store = SampleStore(
            catalog, reader=reader, chunk_bytes=chunk_bytes, by_video=True, keep_bytes=keep_bytes
        )

        self._first_gop, self._num_gops = catalog.video_spans()
        plans, left_out = _plan_parts(opened, self._num_gops, seed=seed)
        video = np.concatenate([plan.video for plan in plans])
        part = np.repeat(np.arange(len(plans)), [len(plan) for plan in plans])
        in_storage_order = np.argsort(self._first_gop[video], kind="stable")
        self._video = video[in_storage_order]
        self._part = part[in_storage_order]
        self._row = np.concatenate([plan.row for plan in plans])[in_storage_order]
        self._texts = QuestionTexts(plans, texts_folder(reader.cache_dir))
        self.num_questions_without_video = left_out.not_sharded + left_out.filtered
        """Questions of the tables whose video is not in the shards, or does not pass the filter."""
        self.num_questions_outside_span = left_out.outside_span
        """Questions whose video shows nothing of span_s."""
        if len(self._video) == 0:
            raise left_out.as_error(plans[0].uri, span_s)
        if left_out.total():
            logger.info("questions left out: %s", left_out.describe(span_s))
        categories, category = _categories(opened, plans)
        super().__init__(
            store,
            chunk_of_unit=compact(store.chunk[self._first_gop[self._video]]),
            part_of_unit=self._part,
            group_of_unit=self._video,
            visit_size=questions_per_visit,
            weights=[part.weight for part in opened.parts],
            identity={
                "kind": "questions",
                "window": self.geometry.window,
                "max_gops": max_gops,
                "span_s": None if span_s is None else list(span_s),
                "questions_per_visit": questions_per_visit,
                "parts": identities(opened),
                "questions_crc32c": [
                    google_crc32c.value(plan.row.tobytes() + plan.video.tobytes()) for plan in plans
                ],
            },
            categories=categories,
            category_of_unit=category[in_storage_order],
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            last=last,
            on_error=on_error,
            rank=rank,
            world_size=world_size,
        )

    def _samples_of(self, unit: int) -> np.ndarray:
        video = self._video[unit]
        return np.arange(int(self._num_gops[video])) + self._first_gop[video]

    def _make_batch(self, units: np.ndarray, make_info: InfoMaker) -> QABatch:
        samples = [self._samples_of(int(unit)).tolist() for unit in units]
        rows: dict[int, Row] = {}
        for position, of_question in zip(make_info.positions, samples, strict=True):
            for sample in of_question:
                if sample not in rows:
                    rows[sample] = gop_row(self.store.catalog, sample, position, self.geometry)
        index = {sample: row for row, sample in enumerate(rows)}
        num_runs = max(
            sum(rows[sample].layout.num_anchors for sample in of_question) for of_question in samples
        )
        shape = (len(units), num_runs)
        buffer = Buffer.allocate(
            {
                **gop_arrays(list(rows.values()), self.geometry),
                "run_kind": (np.int8, shape),
                "run_gop": (np.int32, shape),
                "run_slot": (np.int32, shape),
                "run_s": (np.float64, shape),
                "run_tokens": (np.int32, shape),
                "duration_s": (np.float64, shape[:1]),
                "question_is_valid": (np.bool_, shape[:1]),
            }
        )
        arrays = buffer.arrays()
        skipped: list[Skipped] = []
        failed: set[int] = set()

        def note(row: Row, exc: CopePrepError) -> None:
            skipped.append(self._failed(row.sample, row.position, exc))
            failed.add(row.sample)

        fill_gops(
            {name: array for name, array in arrays.items() if name not in RUN_FIELDS},
            list(rows.values()),
            geometry=self.geometry,
            tokens=self._tokens,
            load=lambda row, out: load_sample(self.store, row, self.geometry, out),
            on_failure=note,
        )
        for question, of_question in enumerate(samples):
            is_valid = failed.isdisjoint(of_question)
            arrays["question_is_valid"][question] = is_valid
            arrays["duration_s"][question] = self._duration_s[self._video[units[question]]]
            used = [(index[sample], rows[sample]) for sample in of_question] if is_valid else []
            _fill_runs(arrays, question, used, self._tokens)
        questions = tuple(
            self._texts.record(int(self._part[unit]), int(self._row[unit])) for unit in units.tolist()
        )
        info = make_info.of(list(rows), skipped, self.store, self._scale)
        return QABatch.from_buffer(buffer, info, questions)


def _fill_runs(
    arrays: dict[str, np.ndarray], question: int, used: Sequence[tuple[int, Row]], tokens: TokenCounts
) -> None:
    """The runs of tokens of one question, in order of time; zeros behind them."""
    start = 0
    for gop, row in used:
        is_picture = row.layout.is_picture
        place = np.s_[question, start : start + len(is_picture)]
        arrays["run_kind"][place] = np.where(is_picture, PICTURE, DELTA)
        arrays["run_gop"][place] = gop
        arrays["run_slot"][place] = np.where(is_picture, np.cumsum(is_picture), np.cumsum(~is_picture)) - 1
        arrays["run_s"][place] = row.layout.anchor_s
        arrays["run_tokens"][place] = np.where(is_picture, tokens.picture, tokens.delta)
        start += len(is_picture)
    for name in ("run_kind", "run_gop", "run_slot", "run_s", "run_tokens"):
        arrays[name][question, start:] = 0


def _with_mix(source: Source, mix: str) -> Source:
    part = single_part(source, "mix", "mix")
    if part.mix is not None:
        raise ConfigurationError("mix", f"{part.dataset} has a mix of its own", "Give one of the two.")
    return part.model_copy(update={"mix": mix})


def _durations_s(catalog: Catalog, *, fps: int) -> np.ndarray:
    """float64 [num_videos]: where the last GOP of each video ends; 0 for one that has none."""
    end_s = np.zeros(len(catalog.video_ids))
    np.maximum.at(end_s, catalog.video, catalog.start_s + catalog.num_frames / fps)
    return end_s


def _wanted_gops(
    catalog: Catalog, max_gops: int | None, span_s: tuple[float, float] | None, *, fps: int
) -> np.ndarray:
    """bool [num_samples]"""
    wanted = np.ones(len(catalog), np.bool_)
    if span_s is not None:
        start_s, end_s = span_s
        if not start_s < end_s:
            raise ConfigurationError(f"span_s {span_s}", "must be (start, end) with start before end")
        wanted &= (catalog.start_s < end_s) & (catalog.start_s + catalog.num_frames / fps > start_s)
    if max_gops is not None:
        # Of n GOPs the i-th is taken if rounding down i * max / n moves on there: evenly, the first one always.
        kept = np.flatnonzero(wanted)
        video = catalog.video[kept]
        count = np.bincount(video, minlength=len(catalog.video_ids))[video]
        is_first = np.diff(video, prepend=-1) != 0
        place = np.arange(len(kept)) - np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
        taken = np.minimum(count, max_gops)
        is_taken = (place * taken // count) != ((place - 1) * taken // count)
        wanted[kept] = is_taken
    return wanted


@dataclass(slots=True, kw_only=True)
class _LeftOut:
    """Numbers of questions that no epoch shows, by what leaves them out."""

    not_sharded: int = 0
    filtered: int = 0
    outside_span: int = 0

    def total(self) -> int:
        return self.not_sharded + self.filtered + self.outside_span

    def describe(self, span_s: tuple[float, float] | None) -> str:
        reasons = (
            (self.not_sharded, "whose video is not in the shards"),
            (self.filtered, "whose video does not pass the filter"),
            (self.outside_span, f"whose video shows nothing of span_s {span_s}"),
        )
        return ", ".join(f"{count} {reason}" for count, reason in reasons if count)

    def as_error(self, uri: str, span_s: tuple[float, float] | None) -> ConfigurationError:
        if not self.total():
            return ConfigurationError(uri, "has no questions, or the mix takes none", "Check the mix.")
        remedies = (
            (self.not_sharded, "shard the videos that the questions are about"),
            (self.filtered, "widen the filter"),
            (self.outside_span, "choose another span_s"),
        )
        remedy = ", or ".join(text for count, text in remedies if count)
        return ConfigurationError(
            uri,
            f"none of its {self.total()} questions is left: {self.describe(span_s)}",
            f"{remedy[0].upper()}{remedy[1:]}.",
        )


def _plan_parts(opened: OpenMix, num_gops: np.ndarray, *, seed: int) -> tuple[list[QuestionPlan], _LeftOut]:
    """The questions of each part; `video` counts over all parts, as in the catalog.

    num_gops: int [num_videos], those of the filter and the span.
    """
    passes = np.bincount(opened.catalog.video, minlength=len(num_gops)) > 0
    first_video = 0
    plans, left_out = [], _LeftOut()
    for part, folder, num_videos in zip(opened.parts, opened.folders, opened.num_videos, strict=True):
        uri = part.questions or questions_uri(part.dataset, folder.uri)
        video_ids = opened.catalog.video_ids.slice(first_video, num_videos)
        plan = plan_questions(uri, video_ids, mix=part.mix, seed=seed)
        plan = plan.with_videos(plan.video + first_video)
        left_out.not_sharded += plan.num_without_video
        left_out.filtered += int((~passes[plan.video]).sum())
        left_out.outside_span += int((passes & (num_gops == 0))[plan.video].sum())
        plans.append(plan.only(num_gops[plan.video] > 0))
        first_video += num_videos
    return plans, left_out


def _categories(opened: OpenMix, plans: Sequence[QuestionPlan]) -> tuple[list[dict[str, object]], np.ndarray]:
    """One category a part, question file and kind; and the category of each question, int64 [num_questions]."""
    categories: list[dict[str, object]] = []
    of_question = []
    for part, plan in zip(opened.parts, plans, strict=True):
        paths, kinds = plan.json_path.dictionary.to_pylist(), plan.kind.dictionary.to_pylist()
        pair = plan.json_path.indices.to_numpy().astype(np.int64) * len(kinds) + plan.kind.indices.to_numpy()
        pairs, codes = np.unique(pair, return_inverse=True)
        of_question.append(codes + len(categories))
        for code in pairs.tolist():
            path, kind = paths[code // len(kinds)], kinds[code % len(kinds)]
            categories.append({"name": path, "kind": kind, "dataset": part.dataset, "weight": part.weight})
    return categories, np.concatenate(of_question)
