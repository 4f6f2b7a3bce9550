"""The study file: which trainings are compared, and what is claimed of them.

In:  plain values.
Out: `StudyConfig`, checked; its `cells`, one setting of each axis.
Never reads a file, never trains: `pipeline/study_file.py` and `headrace/study_run.py` do.

A study is a base job and axes. An axis has named settings, each a few changes of the job; a cell takes one setting of
each axis; a run is a cell with a seed. A claim compares two settings of one axis in all cells that are otherwise equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from pipeline.section import NonNegativeInt, PositiveFloat, PositiveInt, Section
from pipeline.study_formula import FormulaError, formula_value

Cell = dict[str, str]
"""Axis -> the name of its setting."""

STREAM_SECTIONS = ("train", "eval", "sources", "decode", "plugins", "seed")
"""What a batch depends on; runs that differ in nothing else see the same batches."""


def changes_stream(paths: Iterable[str]) -> bool:
    """True if a batch depends on any of these job fields."""
    return any(path.split(".")[0] in STREAM_SECTIONS for path in paths)


class Setting(Section):
    """One choice of an axis."""

    label: str = ""
    """As the page calls it; its name when empty."""
    set: dict[str, Any] = Field(default={})
    """Job fields it changes, `model.init: {law: normal}`, as `--set` would; paths are relative to the job file."""
    weights_std: str = ""
    """Standard deviation of each layer's weights, drawn from a normal distribution, instead of the law of
    `model.init`: a formula of `fan_in` and `fan_out`, for laws that nobody should use. Biases are zero."""

    @field_validator("weights_std")
    @classmethod
    def _can_be_computed(cls, formula: str) -> str:
        if formula:
            try:
                formula_value(formula, fan_in=64.0, fan_out=64.0)
            except FormulaError as error:
                raise PydanticCustomError("formula", "{expected}", {"expected": str(error)}) from error
        return formula


class ClaimSection(Section):
    """A sentence, and the comparison that decides whether it holds."""

    says: str
    """The claim, as its author would put it."""
    kind: Literal["cures_vanishing", "cures_explosion", "helps_generalisation"]
    """`cures_vanishing`: of the pairs whose gradient vanishes before, it does not after; `cures_explosion`: of those
    that blew up before, after they don't; `helps_generalisation`: held-out accuracy is higher after."""
    axis: str
    """The axis whose setting is changed."""
    before: str
    """Its setting without the remedy."""
    after: Annotated[tuple[str, ...], Field(min_length=1)]
    """Its settings with the remedy; each makes pairs with `before`."""
    where: dict[str, tuple[str, ...]] = Field(default={})
    """Axis -> the settings that count; axes that are not named: all."""
    at: Literal["first", "last"] = "first"
    """`cures_vanishing`: the step at which it is judged; what acts during training can only be seen at the last."""
    because: str = ""
    """What theory says about it, for the page; it decides nothing."""


class StudyConfig(Section):
    """A matrix of runs and the claims that are judged by it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "study"
    """The folder is studies/NAME unless --out says otherwise."""
    title: str = ""
    """Heading of the page."""
    about: str = ""
    """First paragraph of the page."""
    job: str
    """The base job's file, relative to the study's."""
    axes: Annotated[dict[str, Annotated[dict[str, Setting], Field(min_length=1)]], Field(min_length=1)]
    """Axis -> name -> setting."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)] = (0, 1, 2)
    """Each cell is trained with each; order, augmentation and weights follow it."""
    steps: Annotated[int, Field(ge=3)] = 300
    """Of each run; gradients are measured through all layers at the first, the middle and the last."""
    evaluate_every: NonNegativeInt = 50
    """Steps between evaluations; 0: only at the end. Always at the end."""
    processes: NonNegativeInt = 0
    """Processes that train at once, each in one thread; 0: as many as cores."""
    stop_after_skipped: PositiveInt = 5
    """Steps in a row without a finite gradient after which a run is over: no later one could be finite either."""
    vanishing_slope: PositiveFloat = 0.12
    """Decades a layer by which the backward signal falls towards the input where it is called vanishing. 0.12 is where
    VANISH_BWD warns: a factor of 0.76 a layer."""
    blow_up_factor: PositiveFloat = 2.0
    """A run that ends with more than so many times its first loss (or the loss of a blind guess, if that is more) has
    blown up, as has one with a step that was not finite."""
    learned_accuracy: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.8
    """Share of right answers on the training images from which a run counts as one that has learned; only those
    can say anything about generalisation."""
    claims: tuple[ClaimSection, ...] = ()

    @model_validator(mode="after")
    def _axes_have_names(self) -> StudyConfig:
        for axis in self.axes:
            if not axis.isidentifier():
                raise PydanticCustomError("axis_name", "axes named by letters, digits and _", {"place": ("axes", axis)})
        return self

    @model_validator(mode="after")
    def _claims_name_what_is_there(self) -> StudyConfig:
        for number, claim in enumerate(self.claims):
            axes, own = list(self.axes), list(self.axes.get(claim.axis, ()))
            named = [("axis", claim.axis, axes), *(("where", axis, axes) for axis in claim.where)]
            if own:
                named += [("before", claim.before, own), *(("after", name, own) for name in claim.after)]
            for axis, names in claim.where.items():
                named += [("where", name, list(self.axes[axis])) for name in names if axis in self.axes]
            for field, name, known in named:
                if name not in known:
                    context = {"names": ", ".join(known), "place": ("claims", number, field)}
                    raise PydanticCustomError("unknown_setting", f"one of {', '.join(known)}, not {name!r}", context)
            if claim.axis in claim.where:
                context = {"place": ("claims", number, "where")}
                raise PydanticCustomError("where", "axes other than the claim's own", context)
        return self

    def cells(self) -> Iterator[Cell]:
        """Every combination of settings, the last axis fastest."""
        for names in product(*self.axes.values()):
            yield dict(zip(self.axes, names, strict=True))

    def changes(self, cell: Cell) -> dict[str, Any]:
        """The job fields that the cell changes; a later axis wins."""
        return {path: value for axis, name in cell.items() for path, value in self.axes[axis][name].set.items()}

    def weights_std(self, cell: Cell) -> str:
        """The formula of the cell's weights; empty: the job's own law."""
        formulas = [self.axes[axis][name].weights_std for axis, name in cell.items()]
        return next((formula for formula in reversed(formulas) if formula), "")

    def stream_changes(self, cell: Cell) -> dict[str, Any]:
        """The changes that the cell's batches depend on; cells with equal ones share a stream."""
        return {path: value for path, value in self.changes(cell).items() if changes_stream([path])}

    def label(self, axis: str, name: str) -> str:
        return self.axes[axis][name].label or name

    @property
    def num_cells(self) -> int:
        return sum(1 for _ in self.cells())

    @property
    def measured_steps(self) -> tuple[int, int, int]:
        """First, middle and last."""
        return 0, self.steps // 2, self.steps - 1
