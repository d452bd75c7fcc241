"""Where everything is in a dataset folder: one place that knows the paths.

    DATASET/manifest.parquet, questions.parquet
    DATASET/reencode/<hash>/spec.json, <video_key>.mp4, ledger/
    DATASET/extract/<hash>/spec.json, <video_key>.tar, ledger/
    DATASET/shards/<hash>/spec.json, shard-00000.tar ..., index.parquet, dataset.json

`<hash>` is `spec_hash` of all the specs up to that stage, so outputs of different settings never mix.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ValidationError

from cope_prep.pipeline import storage
from cope_prep.schemas.errors import ConfigurationError, FormatError, SourceNotFoundError
from cope_prep.schemas.specs import EncodeSpec, ExtractSpec, ShardSpec, spec_hash

MAX_SPEC_BYTES = 1 << 20
"""Of a spec.json; ours have a few KB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Specs:
    """The settings of a whole run, stage by stage."""

    encode: EncodeSpec = EncodeSpec()
    extract: ExtractSpec = ExtractSpec()
    shard: ShardSpec = ShardSpec()
    _hashes: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """By stage, once they were asked for: planning asks for every video, and a hash costs 15 us."""

    def hash_of(self, stage: str) -> str:
        """Identity of a stage's output: the hash of its spec and of those before it."""
        if stage not in self._hashes:
            self._hashes[stage] = self._hash_of(stage)
        return self._hashes[stage]

    def _hash_of(self, stage: str) -> str:
        match stage:
            case "reencode":
                return spec_hash(self.encode)
            case "extract":
                return spec_hash(self.encode, self.extract)
            case "shards":
                return spec_hash(self.encode, self.extract, self.shard)
        raise AssertionError(stage)

    def upto(self, stage: str) -> dict[str, BaseModel]:
        """The specs that a stage's output depends on, by name."""
        specs: dict[str, BaseModel] = {"encode": self.encode, "extract": self.extract, "shard": self.shard}
        return dict(list(specs.items())[: {"reencode": 1, "extract": 2, "shards": 3}[stage]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Paths inside one dataset for one set of specs."""

    dataset: str
    specs: Specs

    @property
    def manifest(self) -> str:
        """URI of manifest.parquet."""
        return storage.join(self.dataset, "manifest.parquet")

    @property
    def questions(self) -> str:
        """URI of questions.parquet."""
        return storage.join(self.dataset, "questions.parquet")

    def folder(self, stage: str) -> str:
        """Folder of a stage's outputs: stage is `reencode`, `extract` or `shards`."""
        return storage.join(self.dataset, stage, self.specs.hash_of(stage))

    def folders(self, *stages: str) -> list[str]:
        """Folders of several stages' outputs."""
        return [self.folder(stage) for stage in stages]

    def reencoded(self, video_key: str) -> str:
        """URI of a re-encoded file."""
        return storage.join(self.folder("reencode"), f"{video_key}.mp4")

    def extracted(self, video_key: str) -> str:
        """URI of a video's samples, one tar."""
        return storage.join(self.folder("extract"), f"{video_key}.tar")

    def ledger(self, stage: str) -> str:
        """Folder of a stage's ledger."""
        return storage.join(self.folder(stage), "ledger")

    def shard(self, index: int) -> str:
        """URI of a shard."""
        return storage.join(self.folder("shards"), shard_name(index))

    @property
    def index(self) -> str:
        """URI of index.parquet."""
        return storage.join(self.folder("shards"), "index.parquet")

    @property
    def dataset_json(self) -> str:
        """URI of dataset.json."""
        return storage.join(self.folder("shards"), "dataset.json")

    def write_spec(self, stage: str) -> None:
        """Publish spec.json beside a stage's outputs, if it is not there."""
        uri = storage.join(self.folder(stage), "spec.json")
        if not storage.exists(uri):
            text = {name: spec.model_dump(mode="json") for name, spec in self.specs.upto(stage).items()}
            storage.publish_bytes(uri, json.dumps(text, indent=2, sort_keys=True).encode() + b"\n")


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"shard-{index:05d}.tar"


def _read_small(uri: str) -> bytes:
    return storage.read_small(uri, MAX_SPEC_BYTES)


def read_specs(uri: str, *, read: Callable[[str], bytes] = _read_small) -> Specs:
    """Read a stage's spec.json back; `read` gives a file's content.

    Raises:
        SourceNotFoundError: there is none.
        FormatError: it does not hold valid specs.
    """
    try:
        document = json.loads(read(uri))
        parts = {
            "encode": EncodeSpec.model_validate(document["encode"]),
            "extract": ExtractSpec.model_validate(document.get("extract", {})),
            "shard": ShardSpec.model_validate(document.get("shard", {})),
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError) as exc:
        raise FormatError(uri, f"does not hold valid specs ({exc})") from exc
    return Specs(**parts)


def find_specs(dataset: str, stage: str, *, read: Callable[[str], bytes] = _read_small) -> list[Specs]:
    """The specs of every output that a stage has in a dataset, in order of their hash."""
    found = []
    for name in storage.list_folders(storage.join(dataset, stage)):
        try:
            found.append(read_specs(storage.join(dataset, stage, name, "spec.json"), read=read))
        except SourceNotFoundError:
            continue
    return found


def the_specs(dataset: str, stage: str) -> Specs:
    """The specs of a stage's only output in a dataset.

    Raises:
        ConfigurationError: the stage has no output there, or several.
    """
    found = find_specs(dataset, stage)
    if len(found) == 1:
        return found[0]
    if not found:
        command = "shard" if stage == "shards" else stage
        raise ConfigurationError(dataset, f"has no output of {stage}", f"Run: cope-prep {command} {dataset}")
    raise several_outputs(dataset, stage, found)


def several_outputs(dataset: str, stage: str, found: Sequence[Specs]) -> ConfigurationError:
    """That one of them must be chosen."""
    hashes = ", ".join(specs.hash_of(stage) for specs in found)
    return ConfigurationError(
        dataset, f"has {len(found)} outputs of {stage} ({hashes})", "Choose one with --spec HASH."
    )
