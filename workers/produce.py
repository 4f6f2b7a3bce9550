"""Produce: a lease becomes the arrays of a slice.

In:  leases of one stream, its source, its compiled chains.
Out: `SliceHeader` and arrays, or a `ReadFailed` (try elsewhere), or a `StreamIsBroken` (no retry can help).
A sample's bytes depend on its coordinates only; a bad one is replaced by a function of them, and noted.

Shapes: N samples of the slice, H height, W width, C channels.
"""

from __future__ import annotations

import time
from collections.abc import Container, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.digests import sample_digest
from pipeline.errors import HeadraceError, SampleError
from pipeline.messages import Lease, StreamSpec
from pipeline.order import Order, SampleKey
from pipeline.probes import PROBE_S
from pipeline.recipe import BatchSpec, Decode, FieldSpec
from pipeline.sample_causes import failing_transform, way_out
from pipeline.slice_header import QUARANTINED, BadSample, SliceHeader
from pipeline.sources.protocol import Source
from workers.chain import CompiledChain
from workers.decode import opened
from workers.progress import ProgressSlot

MAX_ATTEMPTS = 50
"""Substitutes tried for one position. With 1 % of bad samples, 50 in a row happen once in 10^100 positions."""
NUM_PROBED = 8
"""Samples a probe makes; spread over an epoch, since neighbours in a source tend to be alike."""
PROBE_ENOUGH_S = PROBE_S / 3
"""After so long a probe begins no further sample but a second one, without which no two could disagree: what is slow
may be meant so, and is not refused for it."""

LABEL = FieldSpec(name="label", dtype="int64", shape=())


class ReadFailed(HeadraceError):
    """A read failed (I/O error, missing file, out of memory): it may pass, or work on another worker."""

    def __init__(self, position: int, attempt: int, cause: str, bad_before: tuple[str, ...] = ()) -> None:
        """`attempt`: whose read failed; `bad_before`: what was wrong with the bytes of the attempts before it."""
        super().__init__(cause)
        self.position, self.attempt, self.bad_before = position, attempt, bad_before


class StreamIsBroken(HeadraceError):
    """No other worker would do better."""

    expected = "a chain that delivers one shape and dtype for every sample"
    path = ""
    """Of the transform that is to blame; the whole chain if empty."""
    way_out = ""


class NothingMade(StreamIsBroken):
    """Of all samples that a probe has tried none could be made."""

    def __init__(self, failures: Mapping[str, str]) -> None:
        """`failures`: sample -> cause."""
        listed = "".join(f"\n    {name}: {cause}" for name, cause in list(failures.items())[:3])
        super().__init__(f"none could be made of {len(failures)} that were tried, of which the first are{listed}")
        self.path = failing_transform(failures.values())
        self.expected = f"samples that {self.path or 'the chain'} can work on"
        self.way_out = way_out(failures.values())


class ChainIsImpure(StreamIsBroken):
    """A sample comes out differently when it is made again, so nobody could make a batch again."""

    expected = "a chain that makes the same bytes of the same coordinates, each time"


class FinishMisfits(StreamIsBroken):
    """The trainer could not finish such images: Normalize, at the chain's end, was counted for others."""

    expected = "a Normalize with one number, or one for each channel of the images that reach it"


class Made(NamedTuple):
    """One sample, made."""

    image_HWC: NDArray[np.generic]
    label: int
    sample_index: int

    def digest(self) -> bytes:
        """Of the image, which is contiguous, and the label."""
        return sample_digest(self.image_HWC, self.label)


class Producer:
    """Makes slices of one stream; equal leases give equal bytes in every process."""

    def __init__(self, spec: StreamSpec, source: Source, worker: str, progress: ProgressSlot | None = None) -> None:
        self.spec = spec
        self._source = source
        self._worker = worker
        self._progress = progress
        self._order = Order(spec.num_samples, seed=spec.seed, shuffle=spec.shuffle)
        self._read_s = 0.0

    def make(
        self, lease: Lease, chain: CompiledChain, settings: Decode, batch_spec: BatchSpec
    ) -> tuple[SliceHeader, list[NDArray[np.generic]]]:
        """The slice of `lease`: header, images (N,H,W,C) and labels (N,)."""
        started_s = time.perf_counter()
        self._read_s = 0.0
        image_spec = batch_spec.fields[0]
        num_samples = lease.stop - lease.start
        images_NHWC = np.empty((num_samples, *image_spec.shape), dtype=image_spec.dtype)
        labels_N = np.empty(num_samples, dtype=np.int64)
        digests, sample_ids, bad = bytearray(), [], list[BadSample]()
        for row, key in enumerate(self._order.keys(lease.start, lease.stop)):
            position = lease.start + row
            row_HWC = images_NHWC[row]
            made = self._make_sample(key, position, lease.quarantined.get(position, 0), chain, settings, bad, row_HWC)
            if made.image_HWC.shape != image_spec.shape or made.image_HWC.dtype != images_NHWC.dtype:
                raise StreamIsBroken(self._shape_changed(made, image_spec))
            if made.image_HWC is not row_HWC:
                row_HWC[...] = made.image_HWC
            labels_N[row] = made.label
            digests += sample_digest(row_HWC, made.label)
            sample_ids.append(made.sample_index)
        header = SliceHeader(
            stream=lease.stream,
            incarnation=lease.incarnation,
            worker=self._worker,
            start=lease.start,
            stop=lease.stop,
            recipe=lease.recipe,
            fields=batch_spec.fields,
            sample_ids=tuple(sample_ids),
            digests=bytes(digests),
            quarantined=lease.quarantined,
            bad=tuple(bad),
            read_s=self._read_s,
            make_s=time.perf_counter() - started_s - self._read_s,
        )
        return header, [images_NHWC, labels_N]

    def probe(self, chain: CompiledChain, settings: Decode, skip: Container[int] = ()) -> BatchSpec:
        """What this chain delivers, tried on samples spread over an epoch.

        StreamIsBroken if they disagree; ChainIsImpure if one that is made again, after the others, is another.
        `skip`: positions that are known to kill workers.
        """
        started_s = time.perf_counter()
        first: tuple[Made, str] | None = None
        digests: dict[int, bytes] = {}
        failures: dict[str, str] = {}
        num_tried = 0
        num_probed = min(NUM_PROBED, self.spec.num_samples)
        for number in range(num_probed):
            position = number * self.spec.num_samples // num_probed
            if position in skip:
                continue
            if num_tried >= 2 and time.perf_counter() - started_s >= PROBE_ENOUGH_S:
                break
            num_tried += 1
            (key,) = self._order.keys(position, position + 1)
            if self._progress:
                self._progress.begin_sample(position)
            try:
                made = self._transform(key, 0, chain, settings)
            except (SampleError, OSError) as error:
                failures[self._source.describe(key.sample_index)] = str(error)
                continue
            if first is None:
                first = made, self._source.describe(key.sample_index)
            elif (made.image_HWC.shape, made.image_HWC.dtype) != (first[0].image_HWC.shape, first[0].image_HWC.dtype):
                raise StreamIsBroken(self._shape_changed(made, _field_of(first[0].image_HWC), first[1]))
            digests[position] = made.digest()
        if first is None:
            raise NothingMade(failures)
        num_channels, num_numbers = first[0].image_HWC.shape[2], len(chain.finish.scale)
        if num_numbers not in (0, 1, num_channels):  # only a plug-in changes the channels unforeseen
            raise FinishMisfits(f"{num_numbers} numbers, and {num_channels} channels after the transforms before it")
        self._make_again(digests, chain, settings, started_s)
        return BatchSpec(fields=(_field_of(first[0].image_HWC), LABEL), finish=chain.finish)

    def _make_again(self, digests: dict[int, bytes], chain: CompiledChain, settings: Decode, started_s: float) -> None:
        """Each probed sample once more, while there is time; ChainIsImpure at the first that is not as before."""
        for position, digest in digests.items():
            if time.perf_counter() - started_s >= PROBE_ENOUGH_S:
                return
            (key,) = self._order.keys(position, position + 1)
            if self._progress:
                self._progress.begin_sample(position)
            try:
                made = self._transform(key, 0, chain, settings)
            except SampleError:
                continue  # its file has changed meanwhile, which is for a lease to find
            if made.digest() != digest:
                raise ChainIsImpure(self._impurity(key, chain, settings))

    def _impurity(self, key: SampleKey, chain: CompiledChain, settings: Decode) -> str:
        name = self._source.describe(key.sample_index)
        for part in chain.beginnings():
            once, again = (self._transform(key, 0, part, settings).digest() for _ in range(2))
            if once != again:
                where = f"{part.last_path} makes" if part.last_path else "the source or its decoder makes"
                break
        else:
            where = "the chain makes"
        return (
            f"{where} {name} another image or label when it is made again\n"
            "  to go on: draw from self.py_random and self.random_generator only, which headrace sets for each\n"
            "            sample (never from random or np.random), and keep nothing from one call to the next"
        )

    def _make_sample(
        self,
        key: SampleKey,
        position: int,
        attempt: int,
        chain: CompiledChain,
        settings: Decode,
        bad: list[BadSample],
        row_HWC: NDArray[np.generic],
    ) -> Made:
        """The sample of `key`, or the first substitute that can be made; each failure is noted.

        Its image may stand in `row_HWC`, and be that very array.
        """
        failures: list[tuple[int, str]] = [(key.sample_index, QUARANTINED)] if attempt else []
        while attempt < MAX_ATTEMPTS:
            if self._progress:
                self._progress.begin_sample(position, attempt)
            candidate = self._order.substitute(key, attempt) if attempt else key
            try:
                made = self._transform(candidate, attempt, chain, settings, row_HWC)
            except SampleError as error:
                failures.append((candidate.sample_index, str(error)))
                attempt += 1
            except (OSError, MemoryError) as error:
                bad_before = tuple(cause for _, cause in failures if cause != QUARANTINED)
                text = f"the read failed: {error or type(error).__name__}"
                raise ReadFailed(position, attempt, text, bad_before) from error
            else:
                bad += [
                    BadSample(
                        position=position,
                        index=index,
                        name=self._source.describe(index),
                        cause=cause,
                        substitute=made.sample_index,
                    )
                    for index, cause in failures
                ]
                return made
        index, cause = failures[0]
        name = self._source.describe(index)
        raise StreamIsBroken(
            f"{name}: {cause}\n  and {MAX_ATTEMPTS - 1} substitutes in a row are bad too\n"
            f"  to go on: {way_out([cause for _, cause in failures])}"
        )

    def _transform(
        self,
        key: SampleKey,
        attempt: int,
        chain: CompiledChain,
        settings: Decode,
        row_HWC: NDArray[np.generic] | None = None,
    ) -> Made:
        started_s = time.perf_counter()
        raw = self._source.read(key.sample_index)
        self._read_s += time.perf_counter() - started_s
        image = opened(raw.data, settings)
        image_HWC = chain.apply(image, key.seed, key.epoch, key.offset, attempt, row_HWC)
        return Made(image_HWC, raw.label, key.sample_index)

    def _shape_changed(self, made: Made, expected: FieldSpec, example: str = "the samples probed at the start") -> str:
        got = made.image_HWC
        return (
            f"the chain's output changes from sample to sample\n"
            f"  {example}: {_shape_text(expected.shape, expected.dtype)}\n"
            f"  {self._source.describe(made.sample_index)}: {_shape_text(got.shape, got.dtype.name)}\n"
            f"  to go on: add a crop or Resize to the chain, so that every image comes out alike"
        )


def _shape_text(shape: tuple[int, ...], dtype: str) -> str:
    return f"{'x'.join(map(str, shape))} {dtype}"


def _field_of(image_HWC: NDArray[np.generic]) -> FieldSpec:
    return FieldSpec(name="image", dtype=image_HWC.dtype.name, shape=image_HWC.shape)
