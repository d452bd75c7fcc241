"""Every error that cope-prep raises on purpose.

    CopePrepError
    ├── ConfigurationError            a flag, spec or mix file is wrong: nothing was started (exit code 2)
    │   └── RunLockedError            another run is working on the same output
    ├── SourceError                   one source video cannot be used: a row in the ledger
    │   ├── SourceNotFoundError       nothing at that path
    │   ├── NotAVideoError            empty, or no demuxer knows it
    │   ├── NoVideoStreamError        audio only, or only attached pictures
    │   ├── CorruptVideoError         a video stream is there, but no frame of it decodes
    │   └── UnsupportedVideoError     decodes, but its size or timing is beyond what is sane
    ├── BitstreamError                a re-encoded file is not what its EncodeSpec promises
    ├── FormatError                   a sample, shard or table is not what docs/format.md says
    │   ├── ChecksumError             bytes or rebuilt anchors differ from what was recorded
    │   └── SchemaVersionError        written by an incompatible version of the format
    ├── StorageError                  the store failed or lost something
    │   └── StoreRefusedError         it refused, and would do so again: no permission, an archived object
    ├── QuarantinedError              a video that is left out until it is released: a row in the ledger
    ├── TrainingError                 a run of training cannot go on as it is
    │   └── NonFiniteLossError        NaN or infinity in the loss or its gradient
    └── JobError                      the work was fine, its worker was not
        ├── WorkerDiedError           killed by a signal, or out of memory
        │   └── WorkerLostError       with its node or its Ray worker, or it never began
        ├── TimeLimitError            exceeded the time limit of one video
        ├── MemoryLimitError          exceeded the memory limit of one worker
        └── RunLockLostError          another run has taken this one's place

A message names the file, what was found there, and what to do about it; the user, password and query of a URL are
hidden in it, and only there. Errors survive pickling, because they travel from Ray workers to the driver.
"""

from __future__ import annotations

from cope_prep.schemas.redact import redacted


class CopePrepError(Exception):
    """Base of all errors raised by cope-prep."""

    def __init__(self, subject: str, found: str = "", remedy: str = "") -> None:
        """`subject` is the file, shard or option; `found` a clause about it; `remedy` a sentence.

        With the subject alone it is the whole message: torch's DataLoader rebuilds a worker's error so. All three
        are kept as they are given; the message shows them without credentials.
        """
        self.subject = subject
        self.found = found
        self.remedy = remedy
        super().__init__(subject, found, remedy)

    def __str__(self) -> str:
        text = f"{self.subject}: {self.found}" if self.found else self.subject
        return redacted(f"{text.rstrip('.')}. {self.remedy}" if self.remedy else text)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class ConfigurationError(CopePrepError):
    """A flag, a spec or a mix file is wrong; nothing was started."""


class RunLockedError(ConfigurationError):
    """Another run is working on the same output of the same dataset; nothing was started."""


class SourceError(CopePrepError):
    """One source video cannot be used."""


class SourceNotFoundError(SourceError):
    """Nothing is stored at the source's path."""


class NotAVideoError(SourceError):
    """The file is empty, or no demuxer recognises it."""


class NoVideoStreamError(SourceError):
    """The container holds no moving picture: audio only, or only an attached picture."""


class CorruptVideoError(SourceError):
    """A video stream is there, but not one frame of it decodes."""


class UnsupportedVideoError(SourceError):
    """The video decodes, but its dimensions or timing are beyond what can be processed."""


class BitstreamError(CopePrepError):
    """A re-encoded file does not hold what its EncodeSpec promises (B-frame, wrong GOP, wrong size)."""


class FormatError(CopePrepError):
    """A sample, a shard or a table is not what docs/format.md says."""


class ChecksumError(FormatError):
    """Stored bytes, or the anchors rebuilt from them, differ from the recorded checksum."""


class SchemaVersionError(FormatError):
    """Written by an incompatible version of the format."""


class StorageError(CopePrepError):
    """The file system or object store refused an operation or lost an object."""


class StoreRefusedError(StorageError):
    """The file system or object store refused an operation, and would refuse it again as things are."""


class QuarantinedError(CopePrepError):
    """The video is in the dataset's quarantine, so that nothing was tried."""


class TrainingError(CopePrepError):
    """A run of training cannot go on as it is; its last checkpoint is good."""


class NonFiniteLossError(TrainingError):
    """The loss or its gradient is NaN or infinite; the batch was saved, and the weights were not changed by it."""


class JobError(CopePrepError):
    """The work was fine, its worker was not."""


class WorkerDiedError(JobError):
    """The worker process was killed by a signal or ran out of memory."""


class WorkerLostError(WorkerDiedError):
    """The worker process did not begin, or was lost with its node: not the video's fault."""


class TimeLimitError(JobError):
    """One video exceeded the time limit of its stage."""


class MemoryLimitError(JobError):
    """One video needs more memory than a worker process may have."""

    memory_bytes: int | None = None
    """What it had, where that is known."""


class RunLockLostError(JobError):
    """Another run has taken this one's place, because it gave no sign of life for too long."""
