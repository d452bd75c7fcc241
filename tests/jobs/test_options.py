"""Flags: what they become, and that a wrong one is named before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from cope_prep.jobs import options as opt
from cope_prep.jobs import report
from cope_prep.jobs.executors import InProcessExecutor, RayExecutor
from cope_prep.jobs.session import executor_session
from cope_prep.pipeline.layout import Layout, Specs
from cope_prep.schemas.errors import ConfigurationError, StorageError
from cope_prep.schemas.specs import PAPER, EncodeSpec, ExtractSpec, Int8Residual, LosslessIframe, ShardSpec

NO_ENCODE: dict[str, Any] = dict.fromkeys(
    ("codec", "fps", "gop_size", "size", "fit", "quality", "preset")
) | {"profile": "default"}
NO_EXTRACT: dict[str, Any] = dict.fromkeys(("window", "block", "residual", "iframe"))


def encode(**given: Any) -> EncodeSpec:
    return opt.encode_spec(**NO_ENCODE | given)


def extract(**given: Any) -> ExtractSpec:
    return opt.extract_spec(**NO_EXTRACT | given)


def test_no_flags_are_the_defaults() -> None:
    assert encode() == EncodeSpec()
    assert extract() == ExtractSpec()
    assert opt.shard_spec(shard_bytes=None, seed=None) == ShardSpec()


def test_paper_profile_can_be_changed() -> None:
    assert encode(profile="paper") == PAPER
    assert encode(profile="paper", quality=7).quality == 7


def test_another_codec_brings_its_own_quality() -> None:
    assert encode(codec="mpeg4").quality == PAPER.quality
    assert encode(profile="paper", codec="h264").quality == EncodeSpec().quality
    assert encode(codec="mpeg4", quality=9).quality == 9


def test_flags_become_spec_fields() -> None:
    spec = encode(size="640X352", fit="pad", fps=25, gop_size=50, preset="fast")
    assert (spec.width_px, spec.height_px, spec.fit, spec.fps, spec.gop_size) == (640, 352, "pad", 25, 50)
    made = extract(window=10, block=8, residual="int8:8:6", iframe="lossless")
    assert made.residual == Int8Residual(step=8, deadzone=6)
    assert made.iframe == LosslessIframe()
    assert (made.window, made.block_px) == (10, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": "30x32"}, r"--size 30: .*multiple of 16"),
        ({"size": "384"}, r"--size 384: is not WxH"),
        ({"fps": 0}, r"--fps 0: .*greater than or equal to 1"),
        ({"gop_size": 1}, r"--gop-size 1: "),
        ({"codec": "vp9"}, r"--codec vp9: .*'h264' or 'mpeg4'"),
        ({"quality": 60}, r"quality 60 is out of range for h264: 0 to 51"),
        ({"profile": "fast"}, r"--profile fast: no such profile"),
    ],
)
def test_wrong_encode_flag_fails(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        encode(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"window": 0}, "--window 0: "),
        ({"block": 5}, "--block 5: "),
        ({"window": 1, "block": 16}, "window 1 stores the codec's own partitions"),
        ({"residual": "dct:0"}, "residual 'dct:0'"),
        ({"iframe": "png"}, "iframe 'png'"),
    ],
)
def test_wrong_extract_flag_fails(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        extract(**given)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("4096", 4096), ("512MiB", 512 * 1024**2), ("1GB", 10**9), ("1.5 kib", 1536), ("2tb", 2 * 10**12)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert opt.parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "MiB", "-1MB", "5 parsecs", "1e9"])
def test_wrong_size_fails(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a size"):
        opt.parse_bytes(text)


def test_too_small_shard_fails() -> None:
    with pytest.raises(ConfigurationError, match="--shard-bytes 10: "):
        opt.shard_spec(shard_bytes="10", seed=None)


def test_specs_are_chosen_by_hash_when_there_are_several(tmp_path: Path) -> None:
    several = [Specs(), Specs(encode=PAPER)]
    for specs in several:
        Layout(dataset=str(tmp_path), specs=specs).write_spec("reencode")
    for specs in several:
        assert opt.choose_specs(str(tmp_path), "reencode", specs.hash_of("reencode")[:6]) == specs
    with pytest.raises(ConfigurationError, match="Choose one with --spec"):
        opt.choose_specs(str(tmp_path), "reencode", None)
    with pytest.raises(ConfigurationError, match="--spec zz: names 0 outputs of reencode"):
        opt.choose_specs(str(tmp_path), "reencode", "zz")


def test_hash_of_a_stage_finds_what_was_made_of_its_output(tmp_path: Path) -> None:
    dataset = str(tmp_path)
    plain, other = Specs(), Specs(encode=PAPER)
    for specs in (plain, other):
        for stage in ("reencode", "extract", "shards"):
            Layout(dataset=dataset, specs=specs).write_spec(stage)
    Layout(dataset=dataset, specs=Specs(encode=EncodeSpec(fps=10))).write_spec("reencode")
    for specs in (plain, other):
        for stage in ("reencode", "extract", "shards"):
            assert opt.choose_furthest_specs(dataset, specs.hash_of(stage)[:6]) == specs
    alone = Specs(encode=EncodeSpec(fps=10))
    assert opt.choose_furthest_specs(dataset, alone.hash_of("reencode")) == alone
    several = Specs(extract=ExtractSpec(window=15))
    Layout(dataset=dataset, specs=several).write_spec("extract")
    assert opt.choose_furthest_specs(dataset, plain.hash_of("reencode")) == plain  # the only one with shards
    Layout(dataset=dataset, specs=several).write_spec("shards")
    with pytest.raises(ConfigurationError, match=f"has 2 outputs of shards .*{several.hash_of('shards')}"):
        opt.choose_furthest_specs(dataset, plain.hash_of("reencode"))
    assert opt.choose_furthest_specs(dataset, plain.hash_of("extract")) == plain
    with pytest.raises(ConfigurationError, match="names 0 outputs"):
        opt.choose_furthest_specs(dataset, "zz")


WHERE: dict[str, Any] = {
    "address": "local",
    "workers": None,
    "no_ray": False,
    "time_limit": None,
    "wheel": None,
}


def test_executor_is_made_only_when_asked_for() -> None:
    with executor_session(**WHERE) as executor:
        del executor  # not called: no Ray
    with executor_session(**WHERE | {"no_ray": True}) as executor:
        assert isinstance(executor(), InProcessExecutor)
        assert executor() is executor()


def test_what_ray_prints_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    with executor_session(**WHERE):
        print("(raylet) The node has been marked dead")
    print("the result")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("the result\n", "(raylet) The node has been marked dead\n")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"no_ray": True, "workers": 2}, "--no-ray: runs one video at a time"),
        ({"no_ray": True, "address": "auto"}, "--no-ray: "),
        ({"no_ray": True, "time_limit": 5.0}, "--no-ray: "),
        ({"wheel": "x.whl"}, "--wheel: is for a cluster"),
        ({"wheel": "x.whl", "address": "auto"}, "--wheel x.whl: is no wheel"),
    ],
)
def test_wrong_place_to_run_fails(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message), executor_session(**WHERE | given):
        pytest.fail("it began")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:port", "ray://[::1]:1"])
def test_address_where_nothing_listens_fails_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())  # the Ray client is there
    with pytest.raises(ConfigurationError, match="no Ray there"):
        RayExecutor(address=address)


def test_remote_address_without_the_ray_client_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"needs the Ray client.*ray\[client\]"):
        RayExecutor(address="ray://127.0.0.1:1")


def test_temporary_folder_too_long_for_sockets_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(**options: object) -> None:
        path = f"{tmp_path}/ray/session_x/sockets/plasma_store"
        raise OSError(f"validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: {path}")

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray.init", refused)
    with pytest.raises(ConfigurationError, match=r"too long a path.*Set RAY_TMPDIR") as caught:
        RayExecutor(address="local", workers=1)
    assert caught.value.subject == str(tmp_path)


def test_what_to_do_begins_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), report.outlet(json_output=False):
        raise StorageError("s3://bucket/a.mp4", "could not be read (503)")
    assert "read (503). Run the same command again to go on." in capsys.readouterr().err
    with pytest.raises(typer.Exit), report.outlet(json_output=False):
        raise StorageError("s3://bucket/a.mp4", "is gone", "Make room.")
    assert "is gone. Make room. Run the same" in capsys.readouterr().err
