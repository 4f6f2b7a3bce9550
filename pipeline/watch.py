"""Watch: an edit of a chain file is told once it stands whole.

In:  files, read every half a second; what each of them held when the job read it.
Out: a call for each file whose content has changed, and has then stayed the same for two reads, with that content.
Never looks at modification times and never asks the system to notify: by content alone it also works on network file
systems and mounts, with editors that rename, with files that vanish for a moment or are half written.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pipeline.config import MAX_FILE_NBYTES, content_digest

log = logging.getLogger("headrace.watch")

INTERVAL_S = 0.5
"""Between two reads: an edit takes effect within a second, and a read of a small file costs about 20 µs."""
_STOP_S = 5.0
"""A read of a mount that hangs does not keep the process: the thread is a daemon."""


class Watched:
    """One file, as pure state: what was told of it last, and what it held at the last look."""

    def __init__(self, known: str | None) -> None:
        """`known`: digest of the content that needs no telling; None: whatever is there is news."""
        self._told = known
        self._seen: str | None = None

    def look(self, content: bytes | None) -> bool:
        """True if this content is to be told: whole as far as two equal looks can say, and not what was told last.

        None (no such file) and blank content are what a save in several steps leaves for a moment: never told.
        """
        seen = content_digest(content) if content is not None and content.strip() else None
        stands = seen is not None and seen == self._seen
        self._seen = seen
        if not stands or seen == self._told:
            return False
        self._told = seen
        return True


class ChainWatcher:
    """A thread that reads some files again and again, and calls `on_change` with each edited one and its content."""

    def __init__(
        self,
        paths: Iterable[Path],
        on_change: Callable[[Path, bytes], None],
        interval_s: float = INTERVAL_S,
        known: Mapping[str, str] | None = None,
    ) -> None:
        """`known`: path -> digest of what was loaded from it (`Job.file_digests`), so that an edit between loading
        and watching is told too; for a file not in it, what it holds now is known.

        `on_change` is called in the watcher's thread, at most once for each change, with the content that stood for two
        looks. A second read could fall into the next save, and what it found would be taken for what was told.
        """
        self._on_change = on_change
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chain-watcher", daemon=True)
        known = known or {}
        self._watched = {path: Watched(known.get(str(path)) or _digest_now(path)) for path in dict.fromkeys(paths)}

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """No call comes after this returns (unless a read or a call hangs for seconds); harmless when done twice."""
        self._stopping.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            for path, watched in self._watched.items():
                content = _read(path)
                if watched.look(content) and content is not None and not self._stopping.is_set():
                    try:
                        self._on_change(path, content)
                    except Exception:  # a defect of ours; the other files' edits are still worth hearing of
                        log.exception("action=edit_not_handled file=%s", path)


def _digest_now(path: Path) -> str | None:
    content = _read(path)
    return content_digest(content) if content is not None else None


def _read(path: Path) -> bytes | None:
    try:
        # Opened anew each time: a rename puts another file there, and NFS looks for news when a file is opened.
        with path.open("rb") as file:
            return file.read(MAX_FILE_NBYTES + 1)
    except OSError:
        return None
