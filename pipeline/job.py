"""The job file's fields: each with its type, unit, default and reason.

In:  plain values of a job file (lines are kept by `pipeline/config.py`).
Out: `JobConfig`, checked. Paths are relative to the job file and are made absolute by `pipeline/config.py`.
Never reads a file, never builds a chain.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from pipeline.job_clip import ClipSection as ClipSection
from pipeline.job_health import HealthSection as HealthSection
from pipeline.job_model import ModelSection as ModelSection
from pipeline.probes import DEFAULT_HANG_S
from pipeline.section import (
    DecayRate,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    Section,
)

AUTOMATIC_START = 2
"""Workers that `auto` begins with: the default of `workers`, so that a job's first second is as it was."""


def _worker_count(value: object) -> object:
    """Its own check, since pydantic would name a union's wrong value once for each of its members."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError("a number of workers from 0, or auto")


class SplitByHash(Section):
    """Train/held-out split of one source by a hash of each sample's relative path."""

    part: Literal["train", "held_out"]
    """Which side this source is."""
    held_out: OpenFraction = 0.2
    """Share of samples held out. A fifth, as is customary; one added file moves no other."""
    salt: str = ""
    """Another salt gives another split."""


class FolderSource(Section):
    """One folder a class, images nested at any depth below it (jpg, jpeg, png, webp)."""

    kind: Literal["folder"] = "folder"
    path: Path
    """The folder that holds the class folders."""
    content: bool = False
    """True: the fingerprint covers every file's bytes (reads them all once), not only paths, sizes and labels."""
    split: SplitByHash | None = None
    """Take only one side of a hash split; all samples when absent."""


class ManifestSource(Section):
    """A CSV file with one row a sample: a path (relative to the CSV) and a label."""

    kind: Literal["manifest"] = "manifest"
    path: Path
    """The CSV file; its first row names the columns."""
    path_column: str = "path"
    """Column with the image's path."""
    label_column: str = "label"
    """Column with the class name or number."""
    content: bool = False
    """As for `folder`."""
    split: SplitByHash | None = None
    """As for `folder`."""


class ArraysSource(Section):
    """Images and labels as NumPy arrays: one .npz with `images` and `labels`, or two .npy files."""

    kind: Literal["arrays"] = "arrays"
    path: Path
    """The .npz, or the .npy with images (N,H,W), (N,H,W,C); uint8 or uint16. Read row by row, never loaded whole."""
    labels: Path | None = None
    """The .npy with integer labels (N,); needed beside an .npy, absent for an .npz."""
    classes: tuple[str, ...] = ()
    """Class names; `0`, `1`, ... up to the largest label when empty."""
    split: SplitByHash | None = None
    """As for `folder`; the hash is over the index."""


class DigitsSource(Section):
    """scikit-learn's 1,797 handwritten digits (8x8, grey), for tests and first steps; needs scikit-learn."""

    kind: Literal["digits"] = "digits"
    split: SplitByHash | None = None
    """As for `folder`; the hash is over the index."""


class PluginSource(Section):
    """A user's own source: `factory(**options)` returns an object of the source protocol."""

    kind: Literal["plugin"] = "plugin"
    factory: str
    """`module:factory` or `file.py:factory`."""
    options: dict[str, Any] = {}
    """Keyword arguments of the factory."""


SourceConfig = Annotated[
    FolderSource | ManifestSource | ArraysSource | DigitsSource | PluginSource, Field(discriminator="kind")
]


class DecodeSection(Section):
    """What an encoded image becomes before the chain sees it."""

    color: Literal["rgb", "gray"] = "rgb"
    """`rgb`: three channels, grey repeated, alpha dropped, CMYK converted. `gray`: one channel (H,W,1)."""
    depth: Literal[8, 16] = 8
    """Bits a channel: 8 gives uint8, 16 gives uint16 over the full range."""
    max_pixels: PositiveInt = 64_000_000
    """Larger images are bad samples (decompression bombs). A 61 Mpx camera fits; chosen, not measured."""


class TrainStream(Section):
    """The stream the model learns from: shuffled, through many epochs."""

    source: str
    """Name of an entry of `sources`."""
    chain: Any
    """A chain file's path; or the list of transforms itself; or a schedule, a list of
    {from_epoch: EPOCH, use: CHAIN.yaml} with rising epochs from 0. An edit of a chain file while the job runs takes
    effect at the next batch boundary that nothing of has been made."""
    batch_size: PositiveInt = 64
    """Samples a batch."""
    accumulate: PositiveInt = 1
    """Micro-batches a batch is computed in, one after the other, where the whole does not fit into memory: the step is
    still the mean over the whole batch. Batch norm sees micro-batches."""
    epochs: PositiveInt = 1
    """Passes over the source."""
    shuffle: bool = True
    """A new order each epoch, a function of (seed, epoch)."""
    last_batch: Literal["drop", "keep", "wrap"] = "drop"
    """An epoch's incomplete last batch: left out, delivered short, or filled from the next epoch. `drop` keeps
    every step's shape and gradient scale equal, as DataLoader users do for training."""


class EvalStream(Section):
    """The stream the model is judged on: in the source's order, once, on request."""

    source: str
    """Name of an entry of `sources`."""
    chain: Any
    """A chain file's path, or the list of transforms itself; usually no random transform. No schedule, and edits
    while the job runs are passed over: evaluations compare only under one chain."""
    batch_size: PositiveInt = 128
    """Samples a batch; twice the training default since no gradients are kept."""
    every_steps: NonNegativeInt = 0
    """Evaluate every so many steps; 0: after each epoch. Always once at the end."""


class OptimizerSection(Section):
    """How weights move."""

    kind: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: PositiveFloat = 1e-3
    """Learning rate; Adam's customary start."""
    weight_decay: NonNegativeFloat = 0.0
    """L2 penalty (sgd, adam) or decoupled decay (adamw)."""
    momentum: Fraction = 0.9
    """SGD's momentum; ignored by adam and adamw."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """Adam's decay rates (Kingma & Ba 2015)."""
    eps: PositiveFloat = 1e-8
    """What adam and adamw add to the root of the second moment: where gradients are no larger, they hardly move the
    weights (ADAM_FLOOR). Kingma & Ba's, and torch's."""


class ScheduleSection(Section):
    """How the learning rate changes over steps."""

    kind: Literal["constant", "step", "cosine", "plateau"] = "constant"
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up before the schedule proper; for every kind."""
    step_every: PositiveInt = 1000
    """`step`: multiply by gamma every so many steps."""
    gamma: PositiveFloat = 0.1
    """`step` and `plateau`: the factor."""
    min_lr: NonNegativeFloat = 0.0
    """`cosine` ends here; `plateau` never goes below."""
    patience: NonNegativeInt = 3
    """`plateau`: evaluations without a lower held-out loss before the rate drops."""


class CheckpointSection(Section):
    """When a run is saved, so that it can go on after anything."""

    every_steps: NonNegativeInt = 200
    """Steps between checkpoints; 0: only at the end and when stopped. A crash repeats at most so many steps."""
    keep: PositiveInt = 3
    """The newest so many stay: one may turn out damaged, and the one before it was good. The newest that is healthy
    stays besides, however old it gets."""
    keep_best: Literal["held_out_accuracy", "held_out_loss"] | None = None
    """Also keep the checkpoint with the best of this, judged at each evaluation."""
    grace_s: PositiveFloat = 30.0
    """Seconds that a requested stop may take to finish its step and write a checkpoint; then the run ends without."""


class JobConfig(Section):
    """A whole training job."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """The run folder is runs/NAME unless --run-dir says otherwise."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of order, augmentation and weights."""
    sources: dict[str, SourceConfig]
    """Name -> where the samples are. Workers elsewhere map the same names to their own paths."""
    train: TrainStream
    eval: EvalStream | None = None
    """Held-out stream; absent: no evaluation."""
    decode: DecodeSection = DecodeSection()
    plugins: tuple[str, ...] = ()
    """Modules (`module` or `file.py`) that define the user's own transforms."""
    workers: Annotated[int | Literal["auto"], BeforeValidator(_worker_count)] = 2
    """Worker processes; 0 runs everything in the trainer's process, for a debugger; `auto`: more while the trainer
    waits for data, fewer while they idle."""
    min_workers: PositiveInt = 1
    """`headrace scale` and `workers: auto` stay at or above this."""
    max_workers: NonNegativeInt = 0
    """... and at or below this; 0: twice the cores of the machine, but at least 8 (or `workers`, if that is more)."""
    slice_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Samples in a unit of work, at most a batch. Small, so that the first batch arrives soon and a death loses little;
    each costs the dispatcher the same: at 650 samples/s 1.9 % of a core with 32, 3.1 % with 16, the rate being equal
    (`headrace bench`). With many workers and small batches, 16 or more `window_batches` give each of them enough."""
    window_batches: PositiveInt = 8
    """Batches in flight at most; with `window_nbytes` the bound on memory."""
    window_nbytes: PositiveInt = 1 << 30
    """Bytes of batches in flight at most (one batch is always allowed). 1 GiB; chosen, not measured."""
    on_bad_sample: Literal["substitute", "fail"] = "substitute"
    """A sample that can't be decoded or transformed: replaced by another chosen from its coordinates, or fatal. A JPEG
    whose damage libjpeg bridges with filler (wrong inside, its end marker there) decodes: it is not seen as bad, as in
    other loaders."""
    max_bad_fraction: Fraction = 0.01
    """Under `substitute`: fatal once more than max(10, this share of the source, or of what was delivered while that is
    less) were bad. A sample that is bad in each epoch counts once."""
    hang_s: PositiveFloat = DEFAULT_HANG_S
    """Seconds without progress on a sample (its read included), or in building the chain, before a worker is killed by
    its pool. While a chain is tried, at a start or for a swap, everybody waits: there 15 s for a sample and 30 s for
    building are enough, unless hang_s is less, or was raised above its default. Opening a source has 1,800 s (or
    hang_s, if that is more), twice as much after each kill."""
    stall_timeout_s: PositiveFloat = 300.0
    """Seconds without any arriving slice after which `on_stall` is followed, saying what is missing."""
    on_stall: Literal["fail", "wait"] = "fail"
    """`wait`: go on waiting, and say every so often what is missing; for services that may be away for hours."""
    shape: Literal["fixed", "free"] = "fixed"
    """`free`: a swapped chain may deliver other shapes or dtypes (progressive resizing); `fixed`: it is refused."""
    checkpoint: CheckpointSection = CheckpointSection()
    model: ModelSection = ModelSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    clip: ClipSection = ClipSection()
    health: HealthSection = HealthSection()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: CUDA when torch sees a GPU."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What layers compute in (torch's autocast; weights stay float32); `fp16` scales the loss, 65,536 times at first,
    and skips steps that overflow. `fp32`: results are as the weights' own arithmetic gives them."""
    deterministic: bool = False
    """True: only deterministic torch kernels (slower on CUDA), so that equal runs end bit-identical there."""
    torch_threads: NonNegativeInt = 0
    """Threads torch computes with; 0: torch's own choice. Results are bit-identical only for equal numbers."""

    @field_validator("min_workers")
    @classmethod
    def _least_holds_the_start(cls, min_workers: int, info: ValidationInfo) -> int:
        workers = info.data.get("workers", 0)
        if isinstance(workers, int) and 0 < workers < min_workers:
            raise _out_of_bounds(
                f"at most {workers}, the `workers` that the job begins with", f"at least {min_workers}"
            )
        return min_workers

    @field_validator("max_workers")
    @classmethod
    def _greatest_holds_the_start(cls, max_workers: int, info: ValidationInfo) -> int:
        workers, min_workers = info.data.get("workers", 0), info.data.get("min_workers", 1)
        if 0 < max_workers < min_workers:
            raise ValueError(f"0, or at least {min_workers}, the `min_workers`")
        if isinstance(workers, int) and 0 < max_workers < workers:
            raise _out_of_bounds(
                f"0, or at least {workers}, the `workers` that the job begins with", f"at most {max_workers}"
            )
        return max_workers

    @model_validator(mode="after")
    def _streams_name_known_sources(self) -> JobConfig:
        for stream in (self.train, self.eval):
            if stream is not None and stream.source not in self.sources:
                raise ValueError(f"source {stream.source!r} is not one of: {', '.join(self.sources) or 'none'}")
        return self


def _out_of_bounds(expected: str, other_start: str) -> PydanticCustomError:
    way_out = f"change it (--set also does), or begin with {other_start}: `workers` in the job, or --workers"
    return PydanticCustomError("out_of_bounds", "{expected}", {"expected": expected, "way_out": way_out})


def initial_workers(config: JobConfig) -> tuple[int, bool]:
    """How many workers a job begins with, and whether their number then follows the need (`workers: auto`)."""
    if config.workers != "auto":
        return config.workers, False
    low, high = worker_bounds(config)
    return min(max(AUTOMATIC_START, low), high), True


def worker_bounds(config: JobConfig) -> tuple[int, int]:
    """The least and the greatest number of workers on this machine that `scale` and `auto` may set."""
    fixed = config.workers if config.workers != "auto" else 0
    cores = len(os.sched_getaffinity(0))  # those that this process may use, of which a machine has maybe more
    return config.min_workers, config.max_workers or max(2 * cores, 8, fixed, config.min_workers)
