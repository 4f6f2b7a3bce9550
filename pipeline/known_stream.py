"""What a dispatcher remembers of a stream beside its slices: who its trainer is, which workers were told of it.

In:  registrations, recipes to be tried, what probes answered; names of workers.
Out: the OpenStream that a worker lacks.
Pure. Soft state: a trainer that registers again brings all of it back.
"""

from __future__ import annotations

import msgspec

from pipeline.lease_events import StreamId
from pipeline.messages import OpenStream, Register
from pipeline.recipe import BatchSpec, Recipe
from pipeline.service_messages import StreamReport

MAX_ASKED = 64
"""Recipes of one stream under probe at a time; further ones wait for their turn, since a trainer asks again."""
MAX_SPARE = 64
"""Answers remembered of recipes that the timeline does not name, for a trainer that lost one and asks again."""


def trainer_identity(stream: str, incarnation: int) -> bytes:
    """The name of a trainer's control socket: nobody else speaks for the stream."""
    return f"{stream}#{incarnation}".encode()


class KnownStream:
    """Each living worker is told once of each thing there is to know."""

    def __init__(self, stream_id: StreamId, message: Register) -> None:
        self.identity = trainer_identity(*stream_id)
        self.spec = message.spec
        self.recipes = {recipe.digest: recipe for recipe in message.spec.recipes}
        """All that a lease may name."""
        self.revision = message.revision
        self.batch_specs = dict(message.batch_specs)
        self.fingerprint = message.fingerprint
        """Of the workers that made the run's slices so far, "" before the first."""
        self.is_begun = False
        """True once a worker was given work of it: later ones must make the same bytes."""
        self.report: StreamReport | None = None
        self.opened: dict[str, int] = {}
        """Living worker -> the version it was told of."""
        self._id = stream_id
        self._asked: dict[str, Recipe] = {}
        """Recipes under probe, by digest."""
        self._version = 0

    def register(self, message: Register) -> None:
        """Take over a registration with a higher revision."""
        self.spec, self.revision = message.spec, message.revision
        # Not those of the message alone: until the next beat, steps before its head may still be leased.
        self.recipes |= {recipe.digest: recipe for recipe in message.spec.recipes}
        named = {entry.recipe for entry in message.spec.timeline}
        known = {digest: spec for digest, spec in self.batch_specs.items() if digest in named}
        self.batch_specs = {**known, **message.batch_specs}
        self._version += 1

    def ask(self, recipe: Recipe) -> str | None:
        """Remember a recipe that is to be probed; its digest, or None while too many are: it has to be asked again."""
        digest = recipe.digest
        if digest not in self._asked:
            if len(self._asked) >= MAX_ASKED:
                return None
            self._asked[digest] = recipe
            self._version += 1
        return digest

    def asked(self, digest: str) -> Recipe:
        """A recipe under probe."""
        return self._asked[digest]

    def probed(self, digest: str, spec: BatchSpec | None) -> None:
        """What became of a probe: a spec, or a refusal."""
        self._asked.pop(digest, None)  # leases name it once it is registered, and the registration brings it
        if spec is None or self.batch_specs.get(digest) == spec:
            return
        self.batch_specs[digest] = spec
        self._version += 1
        named = {entry.recipe for entry in self.spec.timeline}
        spare = [known for known in self.batch_specs if known not in named]
        for known in spare[:-MAX_SPARE]:
            del self.batch_specs[known]

    def opening_for(self, worker: str, head_step: int) -> OpenStream | None:
        """What to tell the worker before its next work, which it is about to be given; None if it knows everything."""
        self.is_begun = True
        if self.opened.get(worker) == self._version:
            return None
        self.opened[worker] = self._version
        name, incarnation = self._id
        needed = self._needed(head_step)
        self.recipes = {digest: recipe for digest, recipe in self.recipes.items() if digest in needed}
        return OpenStream(
            stream=name,
            incarnation=incarnation,
            spec=msgspec.structs.replace(self.spec, recipes=tuple((self.recipes | self._asked).values())),
            batch_specs={digest: spec for digest, spec in self.batch_specs.items() if digest in needed},
        )

    def forget_worker(self, worker: str) -> None:
        """The worker is gone, or knows nothing any more."""
        self.opened.pop(worker, None)

    def _needed(self, head_step: int) -> set[str]:
        """Recipes that a lease or probe may name from now on: after a thousand swaps, not all that ever were."""
        entries = self.spec.timeline
        first = max((entry.step for entry in entries if entry.step <= head_step), default=0)
        return {entry.recipe for entry in entries if entry.step >= first} | set(self._asked)
