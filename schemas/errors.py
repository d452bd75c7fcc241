"""Every error that cope-prep raises on purpose.

    CopePrepError
    ├── ConfigurationError            a flag, spec or mix file is wrong: nothing was started (exit code 2)
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
    ├── StorageError                  the store refused or lost something
    ├── TrainingError                 a run of training cannot go on as it is
    │   └── NonFiniteLossError        NaN or infinity in the loss or its gradient
    └── JobError                      the work was fine, its worker was not
        ├── WorkerDiedError           killed by a signal, or out of memory
        └── TimeLimitError            exceeded the time limit of one video

A message names the file, what was found there, and what to do about it. Errors survive pickling, because
they travel from Ray workers to the driver.
"""

from __future__ import annotations


class CopePrepError(Exception):
    """Base of all errors raised by cope-prep."""

    def __init__(self, subject: str, found: str = "", remedy: str = "") -> None:
        """`subject` is the file, shard or option; `found` a clause about it; `remedy` a sentence.

        With the subject alone it is the whole message: torch's DataLoader rebuilds a worker's error so.
        """
        self.subject = subject
        self.found = found
        self.remedy = remedy
        super().__init__(subject, found, remedy)

    def __str__(self) -> str:
        text = f"{self.subject}: {self.found}" if self.found else self.subject
        if not self.remedy:
            return text
        return f"{text.rstrip('.')}. {self.remedy}"


class ConfigurationError(CopePrepError):
    """A flag, a spec or a mix file is wrong; nothing was started."""


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


class TrainingError(CopePrepError):
    """A run of training cannot go on as it is; its last checkpoint is good."""


class NonFiniteLossError(TrainingError):
    """The loss or its gradient is NaN or infinite; the batch was saved, and the weights were not changed by it."""


class JobError(CopePrepError):
    """The work was fine, its worker was not."""


class WorkerDiedError(JobError):
    """The worker process was killed by a signal or ran out of memory."""


class TimeLimitError(JobError):
    """One video exceeded the time limit of its stage."""
