"""The hand-written chapters of PROTOCOL.md; `pipeline/protocol_page.py` fills in the numbers.

In and out: nothing; text with {names} for `str.format`.
"""

from __future__ import annotations

OPENING = """\
# The protocol

Version {version}. For somebody who writes a worker (or an operator's tool) in another language: how messages are
spelled, who sends what to whom, and what a worker does from its start to its end. This page is generated from the code
(`python -m pipeline.protocol_page > pipeline/PROTOCOL.md`), and a test holds it to it.

## Sockets

| socket | who binds | who connects | carries |
|---|---|---|---|
| control: ROUTER | the dispatcher | workers, pools, trainers, operators, each with a DEALER | messages, one a frame |
| data: PULL | a trainer, a new address for each incarnation of its stream | workers, each with a PUSH | slices |

A DEALER sets its ZeroMQ identity before it connects:

| who | identity |
|---|---|
| a worker | its name, as in all its messages; a message that names another worker is dropped |
| a pool | its name; kept by a pool that is started in the place of a dead one |
| a trainer | `STREAM#INCARNATION` |
| an operator | `operator-` and random hex digits, new for each command |

Messages through the ROUTER have exactly one frame after the identity. Set LINGER to 0, and close no socket before
what was sent through it is known to have arrived: closing loses what is queued. Addresses are `ipc://` paths of at
most {max_ipc_path_nbytes} bytes, or `tcp://` on the loopback interface. A worker's name is unique for ever: one that is
started again takes a new name. Nothing on these sockets is ever executed, imported or opened as a file.

## Framing

A control message is one frame: a byte with the protocol version (`{version_byte}`), then one msgpack map. The map's
key `type` has the message's name; the other keys are the fields listed below, in any order. A field with a default
may be absent. An unknown key, a wrong type or another version makes the message void: it is dropped and counted, and
nobody answers. Integers are 64 bits, signed; text is UTF-8; `bytes` is msgpack's bin; a tuple is an array; a map's
integer keys are integers. At most {max_message_nbytes} bytes.

A slice is several frames: a header (the version byte, then a `SliceHeader` as a msgpack map without `type`), then the
memory of each field of `fields`, in that order: an array of `stop - start` samples in C order, little-endian. Dtypes:
{dtypes}. At most {max_slice_nbytes} bytes and {max_slice_samples} samples, {max_ndim} dimensions a sample.

`fields[0]` is `image`, (H, W, C); `label` is an int64 a sample. Which they are, the worker said itself when it
answered the probe; every slice under that recipe must have the same.

## Losing messages

Any message may be lost, repeated or late, and each party may die and come back at any time:
{losing}
"""

LIFE = """\
## A worker's life

1. **Join.** Connect the DEALER, send `Join`. `fingerprint` stands for the bytes that the worker makes: all workers
   that a dispatcher has admitted at one time have the same, the others get `Refused` and end. A worker in another
   language has a fingerprint of its own, so it serves where all workers are of its kind. There is no answer to a Join
   that is accepted.
2. **Beat.** About once a second, and whenever something was finished, send `WorkerBeat`: `number` rises by one with
   each, `received` is the highest lease number seen, `holding` are the leases not yet sent. After {worker_ttl_s:g} s
   of silence a worker counts as dead and its leases go to others. Beat from a thread that no transform can hold up.
3. **JoinAgain** says that the dispatcher does not know the worker: it has restarted, or has given the worker up.
   All its leases are void. Start `number` and `received` at 0 again and send `Join`; keep open streams, whose
   `OpenStream` may come again.
4. **OpenStream** comes before the first lease or probe of a stream, and again when there is more to know of it
   (another recipe, another batch spec): the newest replaces the others. Open the source by the *name* in
   `spec.source`, which the worker's own command line maps to a folder, under `spec.source_settings` (a split, say)
   where that command line has none of its own; compare its fingerprint with `spec.source_fingerprint`, and answer
   work with `StreamDeclined` where it differs, or where a plug-in of the recipe is missing: no more of the stream
   comes then, others make it. `CloseStream` ends it. A lease or probe of a stream that was never opened, or under a
   recipe that the last `OpenStream` did not have, is answered with `AskStream`.
5. **Probe.** Build the recipe, try it on samples spread over an epoch, leave out the positions of `skip`. Answer with
   `ProbeAnswer`: the `BatchSpec` of what comes out, or located problems if the chain is wrong. If a read failed, say
   `ProbeFailed`.
6. **Granted** brings a lease. Make the samples at positions `start` to `stop - 1` under `recipe`, send the slice
   through a PUSH socket to `spec.endpoint`, and leave the lease out of `holding` from then on. There are up to
   {leases_in_hand} at a time, worked off in order. Skip a lease that became void before it was begun. A slice that was
   sent, and that the trainer does not confirm within {resend_s:g} s, is leased again, to anybody.
7. **Failures.** A read that fails (it may pass, or work elsewhere): `SliceFailed`. Bytes that can't be decoded or
   transformed: substitute, below. Anything that no other worker would do better, such as another output shape:
   `StreamBroken`.
8. **Leaving.** Send `Leaving` until `Dismissed` comes; no further lease comes, those in hand are to be finished. After
   `Dismissed`, or 10 s, end. `Refused` means: end at once.

A lease may have been given to a second worker because the first was late. Both slices are equal, by the law below;
the trainer takes the first.

## What a sample is

A sample's bytes are a function of its coordinates: source fingerprint, seed, epoch, offset, recipe, attempt. They may
not depend on the worker, the slice it is in, or what was made before.

- `epoch, offset = divmod(position, num_samples)`. Without `shuffle` the index in the source is the offset. With it,
  it is a Feistel network with cycle-walking over the offset, keyed by Philox4x64-10 with key (seed, epoch)
  (`pipeline/order.py`). For {order_num_samples} samples, seed {order_seed}, epoch 0, the indices are {order_indices}.
- Randomness comes from Philox4x64-10 with key (seed, epoch) and counter (0, 0, attempt, offset), and for Python's
  generator from the integer `((attempt << 64 | seed) << 64 | epoch) << 64 | offset` (`workers/randomness.py`).
- `attempt` is 0, or what the lease's `quarantined` says of the position. A sample that can't be decoded or
  transformed is replaced: attempt rises by one, and the index is `word * num_samples >> 64`, `word` being the first
  output of Philox with key (seed, epoch) and counter (0, attempt, 2^64 - 2, offset). Each failure is noted in the
  header's `bad`; `sample_ids` has the indices in the source of the samples delivered.
- Philox counts as NumPy does: a counter's first word is the lowest, and rises by one before each block of four
  outputs. With key ({order_seed}, 0) and counter (0, 0, 1, 2) the first four outputs are
  {philox_example}.
- `digests` holds {digest_nbytes} bytes a sample: XXH3-128 with seed 0, in canonical (big-endian) form, over the bytes
  of the sample's image as they are sent and, after them, the 8 of its label. Of an image 00 01 … 0f with label 3 it is
  `{digest_example}`.
  The trainer computes it again over what it received; a difference names the worker.
- A recipe's digest is the first 16 hex digits of the SHA-256 of its normalised JSON (`pipeline/recipe.py`). A worker
  need not compute it: leases and headers carry it.

## Swaps, for a worker

There is nothing to do. A new recipe comes with a new `OpenStream`, then a `Probe`, then leases that name it. A slice
is made under the recipe of its lease, also while newer ones are known.
"""

MESSAGES = """\
## Messages

Types are written as in Python: `tuple[X, ...]` is an array of X, `dict[K, V]` a map, `X | None` may be nil. `= …` is
the value of a field that is absent.
"""

EXAMPLES = """\
## Bytes

Whole frames, in hexadecimal, as this code makes them.
"""
