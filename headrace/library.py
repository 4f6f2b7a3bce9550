"""The library's front door: a job's batches inside somebody's own loop.

In:  a job file.
Out: `Stream`, an iterable of batches that starts and ends its own services, or uses standing ones.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from headrace.embedded import Streams
from pipeline.config import load_job
from pipeline.job import initial_workers
from pipeline.recipe import BatchSpec
from trainer.batch import Batch


class Stream:
    """Iterating gives every batch of the job's train stream exactly once, in order."""

    def __init__(
        self,
        job: str | Path,
        overrides: Sequence[str] = (),
        *,
        workers: int | None = None,
        connect: str | None = None,
    ) -> None:
        """Start the services of `job` (a job file's path).

        overrides: as the command line's `--set`, such as "train.batch_size=32".
        workers: worker processes instead of the job's number; 0 makes batches in this thread.
        connect: the address of a standing `headrace pipeline`, whose workers are used instead; it is waited for.
        Raises ConfigError if the job or its chains are wrong.
        """
        loaded = load_job(Path(job), overrides)
        initial, automatic = initial_workers(loaded.config)
        num_workers, automatic = (initial, automatic) if workers is None else (workers, False)
        self._streams = Streams(loaded, num_workers, folder=None, connect=connect, automatic=automatic)
        # Ends the services also when the stream is forgotten, or the interpreter exits.
        self._finalizer = weakref.finalize(self, self._streams.close)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; labels are indices into them."""
        return self._streams.train.classes

    @property
    def num_steps(self) -> int:
        """Batches until the end of the job's epochs."""
        return self._streams.train.num_steps

    @property
    def spec(self) -> BatchSpec:
        """Shape and dtype of a sample on the wire, and what finishing does to it."""
        return self._streams.train.spec

    @property
    def waited_s(self) -> float:
        """Seconds the loop has waited for data."""
        return self._streams.train.waited_s

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._streams.train)

    def evaluate(self) -> Iterator[Batch]:
        """One pass over the job's held-out source, in its order."""
        return self._streams.evaluate()

    def close(self) -> None:
        """End the services; harmless when done twice."""
        self._finalizer()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()
