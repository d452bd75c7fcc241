"""The Python in docs/loader.md runs as it stands, in a folder with the datasets that it names."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import fsspec
import pytest

from cope_prep.pipeline import storage
from cope_prep.pipeline.layout import Specs
from cope_prep.pipeline.loader import DeviceGops, GopDataset, GopFilter, QADataset, Shuffle
from cope_prep.pipeline.loader.batch import RUN_FIELDS, BatchInfo, GopBatch
from cope_prep.pipeline.loader.catalog import open_shards
from cope_prep.schemas.arrow import INDEX
from cope_prep.schemas.specs import EncodeSpec, ExtractSpec, ShardSpec

PAGE = Path(__file__).parents[2] / "docs" / "loader.md"
Run = Callable[..., list[str]]

NUM_GOPS, NUM_OTHER_GOPS = 15, 6
"""Videos of 240, 500 and 100 frames in turn: 1, 3 and 1 GOPs."""


def blocks(language: str) -> dict[str, str]:
    """The page's blocks, by the name in their first line: `# name ...`."""
    text = PAGE.read_text()
    found = re.findall(rf"^```{language}\n(# (\S+).*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(found) == text.count(f"```{language}")
    return {name: block for block, name in found}


def load_datasets() -> ModuleType:
    """tests/pipeline/loader/datasets.py, which is on no search path."""
    path = Path(__file__).parents[1] / "pipeline" / "loader" / "datasets.py"
    spec = importlib.util.spec_from_file_location("tests_docs_datasets", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """./dataset, ./other-dataset and ./dataset-s10, with GOPs of 240 frames, and the page's YAML files."""
    folder = tmp_path_factory.mktemp("loader")
    datasets = load_datasets()
    for name, window, num_videos in (("dataset", 30, 9), ("other-dataset", 30, 4), ("dataset-s10", 10, 2)):
        specs = Specs(
            encode=EncodeSpec(width_px=96, height_px=64, preset="ultrafast"),
            extract=ExtractSpec(window=window),
            shard=ShardSpec(target_bytes=60_000),
        )
        made = tmp_path_factory.mktemp(name)
        layout = datasets.make_dataset(
            made, media, num_videos=num_videos, clip_frames=(240, 500, 100), specs=specs, prefix=name
        )
        shutil.move(layout.dataset, folder / name)
    for name, block in blocks("yaml").items():
        (folder / name).write_text(block)
    return folder


@pytest.fixture
def run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs a block in `folder`, or elsewhere, and gives the lines that it prints."""

    def run_block(name: str, *, where: Path = folder, replace: tuple[str, str] = ("", "")) -> list[str]:
        monkeypatch.chdir(where)
        monkeypatch.setenv("COPE_PREP_CACHE", str(tmp_path / "cache"))
        exec(compile(blocks("python")[name].replace(*replace), name, "exec"), {"__name__": "__main__"})
        return capsys.readouterr().out.splitlines()

    return run_block


def shards_of(dataset: Path) -> list[Path]:
    return sorted(Path(open_shards(str(dataset)).uri).glob("shard-*.tar"))


def test_gops(run: Run) -> None:
    lines = run("gops.py")
    assert [line.split()[:2] for line in lines] == [["0", "3"], ["1", "3"]]  # 15 GOPs, 4 a batch
    assert all(re.search(r"\(4, 1, 3, 64, 96\) \(4, 7, 2, 4, 6\)$", line) for line in lines)


def test_questions(run: Run) -> None:
    (line,) = run("questions.py")
    asked, answer, num_tokens = re.fullmatch(r"'(.*)' '(.*)' (\d+)", line).groups()  # type: ignore[union-attr]
    assert re.match(r"<image>\\nQuestion \d about dataset-\d+\.mp4\?", asked)
    assert answer.startswith("Answer")
    assert int(num_tokens) in {266, 266 + 266 + 210, 210 + 3 * 8}


def test_density(run: Run) -> None:
    *lines, merged = run("density.py")
    assert [line.split()[0] for line in lines] == ["1", "2", "4", "8"]
    assert all("pictures at [" in line for line in lines)
    assert re.fullmatch(r"merged: \(1, [12], 96, 96\) \(1, [026], 4, 6, 2\)", merged)


def test_filters(run: Run) -> None:
    (line,) = run("filters.py")
    all_gops, lively = map(int, re.findall(r"\d+", line))
    assert 0 < lively < all_gops == NUM_GOPS


def test_steps(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "cope_prep.loader"):
        lines = run("steps.py")
    assert lines == [f"{rank} 3 steps, 3 repeated" for rank in range(3)]
    (announced,) = [record.getMessage() for record in caplog.records if record.name == "cope_prep.loader"]
    assert re.match(r"epoch 0: 15 samples .* 3 steps of 6; 0 dropped, 3 repeated", announced)


def test_resume(run: Run) -> None:
    assert run("resume.py") == ["1 True 0 dropped"]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it
def test_stateful(run: Run) -> None:
    assert run("stateful.py") == ["True"]


def test_mixes(run: Run) -> None:
    found: dict[str, list[int]] = {}
    for line in run("mixes.py"):
        number, _, name = line.partition(" of ")
        found.setdefault(name.rpartition("/")[2], []).append(int(number))
    # ./dataset has 5 captions of academic videos and 4 open questions of YouTube; ./other-dataset 12 questions.
    captions, open_ended = (
        "0_30_s_academic_v0_1_cap_processed.json", "30_60_s_youtube_oe_v0_1_qa_processed.json",
    )  # fmt: skip
    assert found[captions][-1] == 3  # half of 5, rounded up
    assert found[open_ended][-1] == 4
    assert found["dataset"] == [NUM_GOPS]
    assert found["other-dataset"] == [round(0.25 * NUM_OTHER_GOPS)]
    assert sum(map(sum, found.values())) == round(0.5 * 7) + 2 * 12 + 7 + NUM_GOPS + 2


@pytest.fixture
def bucket(folder: Path) -> Iterator[None]:
    """./dataset in fsspec's memory, in the place of a bucket."""
    memory = fsspec.filesystem("memory")
    memory.put(str(folder / "dataset"), "/bucket/dataset", recursive=True)
    yield
    memory.rm("/bucket", recursive=True)


@pytest.mark.usefixtures("bucket")
def test_remote(run: Run, tmp_path: Path) -> None:
    (line,) = run("remote.py", where=tmp_path, replace=("s3://", "memory://"))
    counters = dict(re.findall(r"(\w+)=(\d+)", line))
    assert int(counters["bytes_fetched"]) >= int(counters["bytes_read"]) > 50_000
    assert any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


def test_skip(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run("skip.py") == ["0 left out"]
    shutil.copytree(folder / "dataset", tmp_path / "dataset")
    dataset = open_shards(str(tmp_path / "dataset"))
    row = storage.read_table(dataset.index_uri, INDEX).to_pylist()[4]
    shard = Path(dataset.uri, row["shard"])
    content = bytearray(shard.read_bytes())
    content[row["offset_bytes"] + row["size_bytes"] // 2] ^= 1
    shard.write_bytes(content)
    *lines, last = run("skip.py", where=tmp_path)
    assert lines
    assert last == f"{len(lines)} left out"  # twice if it is among those that fill up the last batch
    for line in lines:
        assert line.startswith(f"{row['key']} at byte {row['offset_bytes']} of ./dataset/")


def test_plain_webdataset_reads_every_full_gop_without_us(folder: Path, tmp_path: Path) -> None:
    program = "import sys; sys.modules['cope_prep'] = None\n" + blocks("python")["plain.py"]
    shards = shards_of(folder / "dataset")
    assert len(shards) >= 2
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, shards)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = []
    for line in done.stdout.splitlines():
        keys, _, shapes = line.partition(" (")
        batch = keys.split()
        found += batch
        assert shapes == f"{len(batch)}, 64, 96, 3) ({len(batch)}, 7, 4, 6, 2) ({len(batch)}, 7, 96, 96)"
    rows = storage.read_table(open_shards(str(folder / "dataset")).index_uri, INDEX).to_pylist()
    assert sorted(found) == sorted(row["key"] for row in rows if row["num_windows"] == 7)
    assert len(found) == 9


def test_every_block_is_run() -> None:
    tests = " ".join(name for name in globals() if name.startswith("test_"))
    names = [name.removesuffix(".py") for name in blocks("python")]
    assert len(names) == 11
    assert all(f"test_{name}" in tests for name in names)


def test_page_names_every_field_and_choice() -> None:
    text = PAGE.read_text()
    fields = [*GopBatch.__dataclass_fields__, *RUN_FIELDS, *DeviceGops.__dataclass_fields__]
    fields += [*BatchInfo.__dataclass_fields__, *GopFilter.model_fields, *Shuffle.model_fields]
    for make in (GopDataset, QADataset):
        fields += [name for name in inspect.signature(make).parameters if name != "self"]
    assert len(set(fields)) > 50
    missing = [name for name in set(fields) if not re.search(rf"\b{name}\b", text)]
    assert missing == []
