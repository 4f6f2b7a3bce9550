"""Operators: what people ask of running services, and who answers them.

In:  AskSwap, AskStop, AskScale of operators; OperationAnswers of trainers; pools that follow a wish.
Out: SwapAsked and StopAsked to the trainer in question, Resize to a pool, Answers to operators.
Pure. An operation asked for again is passed on again, or answered from memory; a trainer that does not answer, or a
dispatcher that forgot, costs the operator another half second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.known_stream import KnownStream
from pipeline.lease_events import StreamId
from pipeline.messages import AnyMessage, OperationAnswer, StopAsked, SwapAsked
from pipeline.pools import POOL_SILENT_S, Pools
from pipeline.service_messages import Answer, AskScale, AskStop, AskSwap

MAX_OPERATIONS = 256
"""Operations remembered, the newest: each is asked for by one person, for a minute at most."""
TRAIN_SUFFIX = "/train"
"""Only train streams take operations: evaluations come and go."""


@dataclass(slots=True)
class _Operation:
    identity: bytes
    """Of the operator who asked last."""
    answer: Answer | None = None
    pool: str = ""
    """The pool that is to follow, for AskScale."""


class Operators:
    """Each operation is answered to whoever asked for it last."""

    def __init__(
        self, streams: Mapping[StreamId, KnownStream], pools: Pools, send: Callable[[bytes, AnyMessage], None]
    ) -> None:
        self._streams, self._pools, self._send = streams, pools, send
        self._operations: dict[str, _Operation] = {}

    def ask_trainer(self, identity: bytes, message: AskSwap | AskStop) -> None:
        """Pass a swap or a stop on to the trainer it is meant for."""
        operation = self._remember(identity, message.operation)
        if operation.answer is not None:
            self._send(identity, operation.answer)
            return
        stream_id, refusal = self._train_stream(message.stream)
        if stream_id is None:
            # Not remembered as an answer: the trainer may be about to register again.
            self._send(identity, Answer(operation=message.operation, done=False, text=refusal))
            return
        name, incarnation = stream_id
        asked: SwapAsked | StopAsked
        if isinstance(message, AskSwap):
            asked = SwapAsked(
                stream=name,
                incarnation=incarnation,
                operation=message.operation,
                chain=message.chain,
                at_step=message.at_step,
            )
        else:
            asked = StopAsked(stream=name, incarnation=incarnation, operation=message.operation)
        self._send(self._streams[stream_id].identity, asked)

    def trainer_answered(self, message: OperationAnswer) -> None:
        """A trainer says what became of an operation; one that nobody here asked for is passed over."""
        operation = self._operations.get(message.operation)
        if operation is None:
            return
        operation.answer = Answer(
            operation=message.operation, done=message.done, text=message.text, problems=message.problems
        )
        self._send(operation.identity, operation.answer)

    def ask_scale(self, identity: bytes, message: AskScale, now_s: float) -> None:
        """Have a pool grow or shrink; the answer comes once its beat shows the size."""
        operation = self._remember(identity, message.operation)
        if operation.answer is not None:
            self._send(identity, operation.answer)
        elif operation.pool:
            self.pool_beaten(operation.pool)
        else:
            pool, refusal = self._pool(message, now_s)
            if refusal:
                self._send(identity, Answer(operation=message.operation, done=False, text=refusal))
                return
            beat = self._pools.last_beat(pool)
            assert beat is not None
            size = beat.size if message.automatic else message.num_workers
            operation.pool = pool
            self._send(*self._pools.want(pool, size, automatic=message.automatic))

    def pool_beaten(self, pool: str) -> None:
        """Answer those who scaled this pool, if it has its size by now."""
        if not self._pools.is_obeyed(pool):
            return
        beat = self._pools.last_beat(pool)
        assert beat is not None
        for name, operation in self._operations.items():
            if operation.pool == pool and operation.answer is None:
                size = f"follows the load, with {beat.size} now" if beat.automatic else f"has {beat.size}"
                text = f"pool {pool} {size} (of {beat.min_workers} to {beat.max_workers} workers)"
                operation.answer = Answer(operation=name, done=True, text=text)
                self._send(operation.identity, operation.answer)

    def _remember(self, identity: bytes, name: str) -> _Operation:
        operation = self._operations.pop(name, None) or _Operation(identity)
        operation.identity = identity
        self._operations[name] = operation  # the newest last
        if len(self._operations) > MAX_OPERATIONS:
            del self._operations[next(iter(self._operations))]
        return operation

    def _train_stream(self, name: str) -> tuple[StreamId | None, str]:
        found = [known for known in self._streams if known[0].endswith(TRAIN_SUFFIX)]
        listed = "\n".join(f"  {known[0]}" for known in sorted(found))
        if not found:
            return None, "no train stream is registered here"
        if name:
            named = next((known for known in found if known[0] in (name, name + TRAIN_SUFFIX)), None)
            return named, f"no train stream is called {name!r}; there are\n{listed}"
        if len(found) > 1:
            return None, f"there are several train streams; name one of\n{listed}"
        return found[0], ""

    def _pool(self, message: AskScale, now_s: float) -> tuple[str, str]:
        """The pool to be scaled, and "" or why it can't be."""
        names = self._pools.names()
        if not names:
            return "", "no pool is connected here"
        if message.pool not in names and (message.pool or len(names) > 1):
            wrong = f"no pool is called {message.pool!r}" if message.pool else "there are several pools"
            return "", f"{wrong}; name one of: {', '.join(names)}"
        pool = message.pool or names[0]
        beat, silent_s = self._pools.last_beat(pool), self._pools.silent_s(pool, now_s)
        assert beat is not None
        if silent_s >= POOL_SILENT_S:
            return "", f"pool {pool} has been silent for {silent_s:.0f} s; ask again once it is back"
        if not message.automatic and not beat.min_workers <= message.num_workers <= beat.max_workers:
            return "", (
                f"pool {pool} takes {beat.min_workers} to {beat.max_workers} workers, not {message.num_workers}\n"
                "  to go on: ask for a number between; or set min_workers and max_workers in the job, of a standing "
                "pool `headrace workers --min` and `--max`"
            )
        return pool, ""
