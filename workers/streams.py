"""The streams a worker has open: their sources, chains and producers.

In:  OpenStream messages; leases and probes that refer to them.
Out: slices; answers to probes.
Opens only sources and plug-ins that its own command line named, never what a peer sends; of a source, a stream may say
which samples it means (`pipeline/sources/settings.py`).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, Problem
from pipeline.job import SourceConfig
from pipeline.lease_events import BUILDING, OPENING
from pipeline.message import Location
from pipeline.messages import Lease, OpenStream, StreamSpec
from pipeline.recipe import BatchSpec, Decode, Recipe
from pipeline.slice_header import SliceHeader
from pipeline.sources import open_source
from pipeline.sources.protocol import Source
from pipeline.sources.settings import other_argument, with_settings
from pipeline.user_code import load_module, plugin_name
from workers.chain import CompiledChain, compile_chain
from workers.produce import Producer, ReadFailed, StreamIsBroken
from workers.progress import ProgressSlot
from workers.unserved import CannotServe

StreamId = tuple[str, int]
SourceId = tuple[str, str]
"""Name and fingerprint."""
MAX_IDLE_SOURCES = 4
"""Sources without a stream that stay open while any stream is. Evaluation passes come and go, and a source of the
user's own may take long to open; four are those of a few jobs at once. Chosen, not measured."""


class OpenStreams:
    """Makes any slice of any stream that was opened."""

    def __init__(
        self,
        sources: Mapping[str, SourceConfig],
        plugins: Sequence[str],
        base: Path,
        worker: str,
        progress: ProgressSlot | None = None,
    ) -> None:
        self._source_configs = sources
        self._base = base
        self._plugins: dict[str, ModuleType] = {plugin_name(name): load_module(name, base) for name in plugins}
        self._worker = worker
        self._progress = progress
        self._sources: dict[SourceId, Source] = {}
        """Of open streams, and the last few others; the one that was asked for last stands last. By fingerprint too:
        a folder that has changed since is another source, for another job."""
        self._streams: dict[StreamId, OpenStream] = {}
        self._recipes: dict[StreamId, dict[str, Recipe]] = {}
        self._producers: dict[StreamId, Producer] = {}
        self._probed: dict[tuple[StreamId, str], BatchSpec | tuple[Location, ...]] = {}
        """Answers; a refusal until the stream is opened again."""
        self._chains: dict[str, CompiledChain] = {}

    def open(self, message: OpenStream) -> None:
        """Remember what a stream is; nothing is opened before it is used."""
        stream = (message.stream, message.incarnation)
        self._streams[stream] = message
        self._recipes[stream] = {recipe.digest: recipe for recipe in message.spec.recipes}
        self._forget_chains()  # a job of days is swapped hundreds of times
        self._probed = {
            key: known for key, known in self._probed.items() if key[0] != stream or isinstance(known, BatchSpec)
        }

    def close(self, stream: StreamId) -> None:
        """Forget a stream, and what no other open stream needs; a few sources stay for the next of its kind."""
        self._streams.pop(stream, None)
        self._recipes.pop(stream, None)
        self._producers.pop(stream, None)
        self._forget_sources()
        self._forget_chains()

    def is_open(self, stream: StreamId, recipe: str) -> bool:
        """False for a stream that was closed, or whose OpenStream, or the one that names the recipe, never came."""
        return recipe in self._recipes.get(stream, ())

    def endpoint(self, lease: Lease) -> str | None:
        """Where the slices of a lease go; None if its stream, or what the recipe delivers, is not known here."""
        opened = self._streams.get((lease.stream, lease.incarnation))
        return opened.spec.endpoint if opened and lease.recipe in opened.batch_specs else None

    def endpoints(self) -> set[str]:
        """Where slices of any open stream go."""
        return {opened.spec.endpoint for opened in self._streams.values()}

    def make(self, lease: Lease) -> tuple[SliceHeader, list[NDArray[np.generic]]]:
        """The slice of a lease; ReadFailed if this worker can't read or allocate what it takes, now."""
        stream = (lease.stream, lease.incarnation)
        spec = self._streams[stream].batch_specs[lease.recipe]
        if self._progress:
            self._progress.begin_slice(*stream)
        try:
            return self._producer(stream).make(lease, *self._chain(stream, lease.recipe), spec)
        except (OSError, MemoryError) as error:
            first = lease.quarantined.get(lease.start, 0)
            raise ReadFailed(lease.start, first, str(error) or type(error).__name__) from error

    def probe(self, stream: StreamId, digest: str, skip: Container[int] = ()) -> BatchSpec | tuple[Location, ...]:
        """What the recipe delivers, or why it is refused; a probe that is repeated is answered from memory."""
        if (known := self._probed.get((stream, digest))) is not None:
            return known
        if self._progress:
            self._progress.begin_slice(*stream, probed=digest)
        answer = self._probed[stream, digest] = self._try(stream, digest, skip)
        return answer

    def _try(self, stream: StreamId, digest: str, skip: Container[int]) -> BatchSpec | tuple[Location, ...]:
        try:
            return self._producer(stream).probe(*self._chain(stream, digest), skip)
        except CannotServe:
            raise
        except ConfigError as error:
            return tuple(Location.of(problem) for problem in error.problems)
        except StreamIsBroken as error:
            chain = self._recipes[stream][digest].chain
            problem = Problem(
                file=chain.file,
                line=chain.line_of(error.path),
                path=error.path or chain.path,
                expected=error.expected,
                got=str(error),
                way_out=error.way_out,
            )
            return (Location.of(problem),)

    def _forget_sources(self) -> None:
        """All of them with the last stream: a pool that stands idle for months holds no memory, no connection."""
        specs = [message.spec for message in self._streams.values()]
        needed = {(spec.source, spec.source_fingerprint) for spec in specs}
        idle = [key for key in self._sources if key not in needed]
        for key in idle[:-MAX_IDLE_SOURCES] if self._streams else idle:
            del self._sources[key]

    def _forget_chains(self) -> None:
        """What no lease or probe will name any more, as far as OpenStream messages tell."""
        needed = {digest for recipes in self._recipes.values() for digest in recipes}
        self._chains = {digest: chain for digest, chain in self._chains.items() if digest in needed}
        self._probed = {key: spec for key, spec in self._probed.items() if self.is_open(*key)}

    def _chain(self, stream: StreamId, digest: str) -> tuple[CompiledChain, Decode]:
        recipe = self._recipes[stream][digest]
        if digest not in self._chains:
            self._begin(BUILDING)
            self._chains[digest] = compile_chain(recipe, self._plugins)
        return self._chains[digest], recipe.decode

    def _begin(self, what: int) -> None:
        """A hang is one also before the first sample, so the pool has to see it (`workers/pool_member.py`)."""
        if self._progress:
            self._progress.begin_sample(what)

    def _producer(self, stream: StreamId) -> Producer:
        if stream not in self._producers:
            spec = self._streams[stream].spec
            self._producers[stream] = Producer(spec, self._source(spec), self._worker, self._progress)
        return self._producers[stream]

    def _source(self, spec: StreamSpec) -> Source:
        """The stream's source, open; CannotServe if it is missing here, or is another one."""
        known = self._sources.pop((spec.source, spec.source_fingerprint), None)
        if known is not None:
            self._sources[spec.source, spec.source_fingerprint] = known
            return known
        if spec.source not in self._source_configs:
            expected = f"one of {', '.join(self._source_configs) or 'no sources'}"
            way_out = f"start the workers with --source {spec.source}=DIR"
            raise _unserved(spec.source, expected, spec.source, way_out)
        self._begin(OPENING)
        try:
            config = with_settings(self._source_configs[spec.source], spec.source_settings)
            source = open_source(config, self._base, spec.source_fingerprint)
        except ConfigError as error:
            raise CannotServe(error.problems) from error
        if source.fingerprint != spec.source_fingerprint or len(source) != spec.num_samples:
            raise _unserved(
                spec.source,
                f"{spec.num_samples} samples, fingerprint {spec.source_fingerprint[:16]}, as where the trainer runs",
                f"{len(source)} samples, fingerprint {source.fingerprint[:16]}",
                _way_to_the_same_samples(config, spec),
            )
        self._sources[spec.source, spec.source_fingerprint] = source
        return source


def _way_to_the_same_samples(config: SourceConfig, spec: StreamSpec) -> str:
    if argument := other_argument(spec.source, config, spec.source_settings):
        return f"start the workers with {argument}, as the job has it"
    undo = "undo what was added, removed or resized on one side, perhaps since the run began"
    return f"{undo}; or name the right place with --source {spec.source}=DIR"


def _unserved(name: str, expected: str, got: str, way_out: str) -> CannotServe:
    return CannotServe(Problem(file="--source", line=0, path=name, expected=expected, got=got, way_out=way_out))
