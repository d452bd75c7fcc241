"""The temporary folder of a worker process: held by its supervisor; if that was killed, the next one removes it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile

_FOLDER_PREFIX = "cope-prep-worker-"


def make_folder() -> tuple[str, int]:
    """A new temporary folder, and the open file by which this process holds it; the kernel lets go when it dies."""
    while True:
        folder = tempfile.mkdtemp(prefix=_FOLDER_PREFIX)
        with contextlib.suppress(FileNotFoundError):
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(held, fcntl.LOCK_EX)
            if os.path.isdir(folder):  # else another process took it for an old one before it was held
                return folder, held
            os.close(held)


def remove_old_folders() -> None:
    """Remove temporary folders whose supervisor was killed, which could not do it."""
    with os.scandir(tempfile.gettempdir()) as entries:
        folders = [entry.path for entry in entries if entry.name.startswith(_FOLDER_PREFIX)]
    for folder in folders:
        with contextlib.suppress(OSError):  # another user's, held, or just removed
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(held)
