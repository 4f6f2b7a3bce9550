"""What becomes of a job's bad samples: the policy of each of its streams, and where they are named.

In:  a job, its run folder if it has one, what earlier attempts quarantined and counted.
Out: a `BadSamplePolicy` for a stream; how many bad samples were met.
A look writes nothing: the train stream, which meets the same samples, decides about them.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Literal

from pipeline.config_job import Job
from pipeline.messages import StreamSpec
from pipeline.order import Order
from pipeline.quarantine import attempts_at, entry_of
from pipeline.run_folder import RunFolder
from pipeline.sources.protocol import Source
from pipeline.stream_start import StreamStart
from pipeline.timeline import Timeline
from trainer.policy import BadSamplePolicy

StreamName = Literal["train", "eval", "look"]
"""Streams of one job; `look` shows the first train batches to what looks at data before training."""

log = logging.getLogger("headrace.stream")


class BadSamples:
    """Every bad sample of `train` and `eval` is counted, and named where the job's records are."""

    def __init__(self, job: Job, folder: RunFolder | None, start: StreamStart) -> None:
        self._job, self._folder, self._start = job, folder, start
        self.count = start.told.copy()
        """Of the run, all attempts and both streams."""
        self._lock = threading.Lock()  # each stream has a thread
        self._quarantined = {name: list(start.quarantined.get(name, ())) for name in ("train", "eval")}
        """All of it is on disk, if there is a run folder."""

    def policy(
        self, name: StreamName, spec: StreamSpec, source: Source, timeline: Timeline, step: int
    ) -> BadSamplePolicy:
        """The job's policy, for one incarnation of a stream that begins before `step` of the training.

        `timeline`: the stream's as it begins; what it may become differs only in steps that were never trained.
        """
        config = self._job.config
        order = Order(spec.num_samples, seed=spec.seed, shuffle=spec.shuffle)

        def identify(position: int, attempt: int) -> tuple[int, str]:
            (key,) = order.keys(position, position + 1)
            index = order.substitute(key, attempt).sample_index if attempt else key.sample_index
            return index, source.describe(index)

        def trained_at(position: int) -> int | None:
            at_step = timeline.step_from(position + 1) - 1
            return at_step if at_step < self._start.free_from_step else None

        if name == "look":
            quarantined = attempts_at(self._quarantined["train"], step)
            return BadSamplePolicy(
                config.on_bad_sample,
                config.max_bad_fraction,
                spec.num_samples,
                identify=identify,
                quarantined=quarantined,
                counted_elsewhere=quarantined.keys(),
            )
        return BadSamplePolicy(
            config.on_bad_sample,
            config.max_bad_fraction,
            spec.num_samples,
            identify=identify,
            quarantine=lambda entry: self._quarantine(name, {**entry, "step": step} if name == "eval" else entry),
            journal=lambda entry: self._name(name, {"source": spec.source, **entry}),
            quarantined=attempts_at(self._quarantined[name], step),
            # A position of `eval` counts in the pass that lost it, also where that is done again; not in later ones.
            counted_elsewhere=attempts_at(self._quarantined[name], step - 1) if name == "eval" else (),
            trained_at=trained_at if name == "train" else lambda position: None,
            num_delivered=self._start.num_delivered if name == "train" else 0,
            bad=self._start.bad if name == "train" else None,
        )

    def _quarantine(self, name: StreamName, entry: dict[str, Any]) -> None:
        if self._folder is not None:
            self._folder.append_quarantine({"stream": name, **entry})
        self._quarantined[name].append(entry_of(entry))

    def _name(self, name: StreamName, entry: dict[str, Any]) -> None:
        with self._lock:
            self.count.meet(entry["index"], entry["source"])
        if self._folder is not None:
            self._folder.append_event("bad_sample", stream=name, **entry)
        else:  # without a run folder stderr is the only place to name it
            log.warning("action=bad_sample stream=%s %s", name, " ".join(f"{k}={v}" for k, v in entry.items()))
