"""The streams a worker has open: their sources, chains and producers.

In:  OpenStream messages; leases and probes that refer to them.
Out: slices; answers to probes.
Opens only sources and plug-ins that its own command line named, never what a peer sends.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, Problem
from pipeline.job import SourceConfig
from pipeline.message import Location
from pipeline.messages import Lease, OpenStream
from pipeline.recipe import BatchSpec, Decode, Recipe
from pipeline.slice_header import SliceHeader
from pipeline.sources import open_source
from pipeline.sources.protocol import Source
from pipeline.user_code import load_module, plugin_name
from workers.chain import CompiledChain, compile_chain
from workers.produce import Producer, ReadFailed, StreamIsBroken
from workers.progress import ProgressSlot

StreamId = tuple[str, int]


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
        self._plugins: dict[str, ModuleType] = {plugin_name(name): load_module(name, base) for name in plugins}
        self._worker = worker
        self._progress = progress
        self._sources: dict[str, Source] = {}
        self._streams: dict[StreamId, OpenStream] = {}
        self._recipes: dict[StreamId, dict[str, Recipe]] = {}
        self._producers: dict[StreamId, Producer] = {}
        self._probed: dict[tuple[StreamId, str], BatchSpec] = {}
        self._chains: dict[str, CompiledChain] = {}

    def open(self, message: OpenStream) -> None:
        """Remember what a stream is; nothing is opened before it is used."""
        stream = (message.stream, message.incarnation)
        self._streams[stream] = message
        self._recipes[stream] = {recipe.digest: recipe for recipe in message.spec.recipes}

    def close(self, stream: StreamId) -> None:
        """Forget a stream."""
        self._streams.pop(stream, None)
        self._recipes.pop(stream, None)
        self._producers.pop(stream, None)
        self._probed = {key: spec for key, spec in self._probed.items() if key[0] != stream}

    def is_open(self, stream: StreamId) -> bool:
        """False for a stream whose OpenStream never came, or that was closed."""
        return stream in self._streams

    def endpoint(self, lease: Lease) -> str | None:
        """Where the slices of a lease go; None if its stream is closed."""
        opened = self._streams.get((lease.stream, lease.incarnation))
        return opened.spec.endpoint if opened else None

    def endpoints(self) -> set[str]:
        """Where slices of any open stream go."""
        return {opened.spec.endpoint for opened in self._streams.values()}

    def make(self, lease: Lease) -> tuple[SliceHeader, list[NDArray[np.generic]]]:
        """The slice of a lease; ReadFailed if this worker can't read or allocate what it takes, now."""
        stream = (lease.stream, lease.incarnation)
        spec = self._streams[stream].batch_specs[lease.recipe]
        try:
            return self._producer(stream).make(lease, *self._chain(stream, lease.recipe), spec)
        except (OSError, MemoryError) as error:
            raise ReadFailed(lease.start, str(error) or type(error).__name__) from error

    def probe(self, stream: StreamId, digest: str, skip: Container[int] = ()) -> BatchSpec | tuple[Location, ...]:
        """What the recipe delivers, or why it is refused; a probe that is repeated is answered from memory."""
        if (known := self._probed.get((stream, digest))) is not None:
            return known
        try:
            spec = self._producer(stream).probe(stream, *self._chain(stream, digest), skip)
            self._probed[stream, digest] = spec
            return spec
        except ConfigError as error:
            return tuple(Location.of(problem) for problem in error.problems)
        except StreamIsBroken as error:
            chain = self._recipes[stream][digest].chain
            expected = "a chain that delivers one shape and dtype for every sample"
            problem = Problem(file=chain.file, line=chain.line, path=chain.path, expected=expected, got=str(error))
            return (Location.of(problem),)

    def _chain(self, stream: StreamId, digest: str) -> tuple[CompiledChain, Decode]:
        recipe = self._recipes[stream][digest]
        if digest not in self._chains:
            self._chains[digest] = compile_chain(recipe, self._plugins)
        return self._chains[digest], recipe.decode

    def _producer(self, stream: StreamId) -> Producer:
        if stream not in self._producers:
            spec = self._streams[stream].spec
            source = self._source(spec.source, spec.source_fingerprint)
            if source.fingerprint != spec.source_fingerprint or len(source) != spec.num_samples:
                raise StreamIsBroken(
                    f"source {spec.source!r} is not the same here as where the trainer runs\n"
                    f"  trainer: {spec.num_samples} samples, fingerprint {spec.source_fingerprint[:16]}\n"
                    f"  worker:  {len(source)} samples, fingerprint {source.fingerprint[:16]}\n"
                    f"  to go on: make both folders equal, or name the right one with --source"
                )
            self._producers[stream] = Producer(spec, source, self._worker, self._progress)
        return self._producers[stream]

    def _source(self, name: str, fingerprint: str) -> Source:
        if name not in self._source_configs:
            raise ConfigError(
                Problem(
                    file="--source",
                    line=0,
                    path=name,
                    expected=f"one of {', '.join(self._source_configs) or 'no sources'}",
                    got=name,
                    way_out=f"start the workers with --source {name}=DIR",
                )
            )
        if name not in self._sources:
            self._sources[name] = open_source(self._source_configs[name], fingerprint)
        return self._sources[name]
