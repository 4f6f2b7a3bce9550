"""Remake: a past batch, made again by the code that workers run, with what was applied to each sample.

In:  an open source, a stream's seed and order, a recipe, a range of positions.
Out: `RemadeBatch`: the batch's digest, and for the samples asked for: original, augmented, transforms.
Never reads a run's folder, never compares digests: `commands/replay.py` does.

Shapes: H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrace._house import own_house
from headrace.worker_conditions import take_kernels_of_workers
from pipeline.config_job import Job
from pipeline.digests import SAMPLE_DIGEST_NBYTES, batch_digest
from pipeline.errors import ConfigError, Problem
from pipeline.messages import Lease, OpenStream, StreamSpec
from pipeline.order import Order
from pipeline.recipe import BatchSpec, Recipe
from pipeline.slice_header import QUARANTINED, BadSample, SliceHeader
from pipeline.sources.protocol import Source
from pipeline.timeline import BatchRange, Timeline
from pipeline.user_code import load_module, plugin_name

with own_house():
    take_kernels_of_workers()  # before what makes samples is imported
    from workers.decode import decode
    from workers.produce import ReadFailed
    from workers.recording import Applied, RecordingChain
    from workers.streams import OpenStreams

_STREAM, _INCARNATION = "replay", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RemadeSample:
    """One sample of the batch: what stands at its position, and how it came about."""

    position: int
    index: int
    """In the source."""
    name: str
    label: int
    class_name: str
    replaces: tuple[tuple[str, str], ...]
    """(name, cause) of each sample that could not stand here; the first is the one whose place it is."""
    original_HWC: np.ndarray
    """As decoded."""
    image_HWC: np.ndarray
    """As it went over the wire: before Normalize and ToTensorV2, which the trainer does."""
    applied: tuple[Applied, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemadeBatch:
    """A whole batch's digest, and the first of its samples."""

    range: BatchRange
    digest: str
    samples: tuple[RemadeSample, ...]


class Remaker:
    """Makes any batch of one stream, any number of times, under any recipe."""

    def __init__(
        self, job: Job, source: Source, timeline: Timeline, base: Path, quarantined: Mapping[int, int]
    ) -> None:
        """`base`: the folder that plug-in modules are looked for in. `quarantined`: position -> first attempt."""
        section = job.config.train
        self._config = job.config
        self._source = source
        self._timeline = timeline
        self._base = base
        self._quarantined = quarantined
        self._order = Order(len(source), seed=job.config.seed, shuffle=section.shuffle)
        self._streams = OpenStreams(job.config.sources, job.config.plugins, base, worker="replay")

    def remake(self, batch: BatchRange, recipe: Recipe, num_samples: int) -> RemadeBatch:
        """The batch at these positions under `recipe`; details of its first `num_samples`.

        ConfigError if the recipe is refused, or a sample's file can't be read any more.
        """
        header, arrays = self._make(batch, recipe)
        digests = [
            header.digests[at : at + SAMPLE_DIGEST_NBYTES] for at in range(0, len(header.digests), SAMPLE_DIGEST_NBYTES)
        ]
        images_NHWC, labels_N = arrays
        ids_N = np.array(header.sample_ids, dtype=np.int64)
        digest = batch_digest(digests, labels_N.astype(np.int64), ids_N)
        plugins = {plugin_name(name): load_module(name, self._base) for name in self._config.plugins}
        chain = RecordingChain(recipe, plugins)
        samples = [
            self._sample(batch.start + row, int(ids_N[row]), images_NHWC[row], header, recipe, chain)
            for row in range(min(num_samples, batch.stop - batch.start))
        ]
        return RemadeBatch(range=batch, digest=digest, samples=tuple(samples))

    def _make(self, batch: BatchRange, recipe: Recipe) -> tuple[SliceHeader, list[Any]]:
        """The batch as one slice, through the same calls as in a worker."""
        spec = self._spec(recipe)
        opened = OpenStream(stream=_STREAM, incarnation=_INCARNATION, spec=spec)
        self._streams.close((_STREAM, _INCARNATION))
        self._streams.open(opened)
        # A sample that killed workers in the run would kill this process: probes leave it out, as they did then.
        outcome = self._streams.probe((_STREAM, _INCARNATION), recipe.digest, skip=self._quarantined)
        if not isinstance(outcome, BatchSpec):
            raise ConfigError(place.problem() for place in outcome)
        self._streams.open(
            OpenStream(stream=_STREAM, incarnation=_INCARNATION, spec=spec, batch_specs={recipe.digest: outcome})
        )
        here = {
            position: attempt for position, attempt in self._quarantined.items() if batch.start <= position < batch.stop
        }
        lease = Lease(
            number=1,
            stream=_STREAM,
            incarnation=_INCARNATION,
            start=batch.start,
            stop=batch.stop,
            recipe=recipe.digest,
            quarantined=here,
        )
        try:
            return self._streams.make(lease)
        except ReadFailed as error:
            raise self._unreadable(error) from error

    def _spec(self, recipe: Recipe) -> StreamSpec:
        section = self._config.train
        return StreamSpec(
            source=section.source,
            source_fingerprint=self._source.fingerprint,
            num_samples=len(self._source),
            seed=self._config.seed,
            shuffle=section.shuffle,
            last_batch=section.last_batch,
            end_position=self._timeline.end_position,
            slice_size=self._config.slice_size,
            recipes=(recipe,),
            timeline=self._timeline.entries,
            endpoint="inproc://unused",
        )

    def _sample(
        self,
        position: int,
        index: int,
        wire_HWC: np.ndarray,
        header: SliceHeader,
        recipe: Recipe,
        chain: RecordingChain,
    ) -> RemadeSample:
        """Made once more, by the chain that tells what it applied; its bytes must be those of the batch."""
        bad = [note for note in header.bad if note.position == position]
        attempt = final_attempt(bad, self._quarantined.get(position, 0))
        (key,) = self._order.keys(position, position + 1)
        raw = self._source.read(index)
        original_HWC = decode(raw.data, recipe.decode)
        # A copy: a chain without transforms gives back the very array it was given.
        made_HWC, applied = chain.apply(original_HWC.copy(), key.seed, key.epoch, key.offset, attempt)
        assert made_HWC.tobytes() == wire_HWC.tobytes(), (
            f"position {position}: the recorded call of the chain makes other bytes than the workers' call"
        )
        return RemadeSample(
            position=position,
            index=index,
            name=self._source.describe(index),
            label=raw.label,
            class_name=self._source.classes[raw.label],
            replaces=tuple((note.name, note.cause) for note in bad),
            original_HWC=original_HWC,
            image_HWC=made_HWC,
            applied=applied,
        )

    def _unreadable(self, error: ReadFailed) -> ConfigError:
        (key,) = self._order.keys(error.position, error.position + 1)
        sample = self._order.substitute(key, error.attempt) if error.attempt else key
        name = self._config.train.source
        return ConfigError(
            Problem(
                file=self._source.describe(sample.sample_index),
                line=0,
                path=f"sources.{name}, position {error.position}",
                expected="a sample that can be read, as in the run",
                got=str(error),
                way_out=f"bring it back, or name a copy of the source: --source {name}=DIR",
            )
        )


def final_attempt(bad: list[BadSample], first: int) -> int:
    """The attempt whose sample stands at a position: `first` as quarantined, one more for each that was bad since."""
    return first + sum(note.cause != QUARANTINED for note in bad)
