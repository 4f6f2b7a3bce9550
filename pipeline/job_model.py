"""The job file's `model` section: what is trained, with which activation, from which initial weights.

In:  plain values; an activation or a law is a name, or a map with its name and its parameters.
Out: `ModelSection`, checked. A parameter that the chosen name does not have is an error at its own line.
Never imports torch: `trainer/activations.py` and `trainer/init_laws.py` say what the names mean, and a test compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from pipeline.section import NonNegativeFloat, OpenFraction, PositiveFloat, PositiveInt, Section

ACTIVATION_PARAMETERS: dict[str, tuple[str, ...]] = {
    "default": (),
    "sigmoid": (),
    "tanh": (),
    "relu": (),
    "leaky_relu": ("negative_slope",),
    "prelu": ("initial_slope",),
    "elu": ("alpha",),
    "selu": (),
    "gelu": ("approximate",),
    "silu": (),
    "mish": (),
    "hardswish": (),
    "softplus": ("beta",),
    "relu6": (),
}
"""Activation -> the parameters it has, `replace` aside, which all have."""

LAW_PARAMETERS: dict[str, tuple[str, ...]] = {
    "default": (),
    "auto": ("residual",),
    "zeros": ("residual",),
    "constant": ("value", "residual"),
    "normal": ("std", "residual"),
    "uniform": ("bound", "residual"),
    "truncated_normal": ("std", "residual"),
    "xavier_uniform": ("gain", "residual"),
    "xavier_normal": ("gain", "residual"),
    "kaiming_uniform": ("mode", "gain", "residual"),
    "kaiming_normal": ("mode", "gain", "residual"),
    "lecun_uniform": ("gain", "residual"),
    "lecun_normal": ("gain", "residual"),
    "orthogonal": ("gain", "residual"),
    "delta_orthogonal": ("gain", "residual"),
    "sparse": ("sparsity", "gain", "residual"),
    "lsuv": ("tolerance", "max_tries"),
}
"""Law -> the parameters it has."""

ActivationName = Literal[
    "default",
    "sigmoid",
    "tanh",
    "relu",
    "leaky_relu",
    "prelu",
    "elu",
    "selu",
    "gelu",
    "silu",
    "mish",
    "hardswish",
    "softplus",
    "relu6",
]
LawName = Literal[
    "default",
    "auto",
    "zeros",
    "constant",
    "normal",
    "uniform",
    "truncated_normal",
    "xavier_uniform",
    "xavier_normal",
    "kaiming_uniform",
    "kaiming_normal",
    "lecun_uniform",
    "lecun_normal",
    "orthogonal",
    "delta_orthogonal",
    "sparse",
    "lsuv",
]


def _require_fitting(value: Any, info: ValidationInfo, chooser: str, table: Mapping[str, tuple[str, ...]]) -> Any:
    """Its value, if what was chosen has this parameter; nothing is silently without effect."""
    chosen = info.data.get(chooser)
    if chosen is None or info.field_name in table[chosen]:
        return value  # None: the name itself is wrong, and that is the error to tell
    has = ", ".join(table[chosen]) or "no parameters"
    owners = ", ".join(name for name, parameters in table.items() if info.field_name in parameters)
    context = {"chosen": chosen, "has": has, "way_out": f"leave it out; {info.field_name} is for {owners}"}
    raise PydanticCustomError("does_not_fit", "a parameter of {chosen} ({has})", context)


def _named(chooser: str, what: str) -> Callable[[object], object]:
    """A plain name stands for a map with only that name."""

    def as_map(value: object) -> object:
        if isinstance(value, str):
            return {chooser: value}
        if isinstance(value, dict | Section):
            return value
        raise PydanticCustomError("not_named", f"{what}'s name, or a map with `{chooser}` and its parameters")

    return as_map


class ActivationSection(Section):
    """A non-linearity; written as its name alone, or as {name: leaky_relu, negative_slope: 0.2}."""

    name: ActivationName = "default"
    """`default`: whatever the factory built; relu in the built-in models."""
    negative_slope: NonNegativeFloat = 0.01
    """`leaky_relu`: slope below zero (Maas et al. 2013)."""
    initial_slope: NonNegativeFloat = 0.25
    """`prelu`: slope below zero before it is learned (He et al. 2015)."""
    alpha: PositiveFloat = 1.0
    """`elu`: minus its limit far below zero (Clevert et al. 2016)."""
    beta: PositiveFloat = 1.0
    """`softplus`: its sharpness; log(1 + exp(beta z)) / beta."""
    approximate: Literal["none", "tanh"] = "none"
    """`gelu`: exact, or by tanh as in GPT-2."""
    replace: Annotated[
        tuple[str, ...], BeforeValidator(lambda names: tuple(names) if isinstance(names, list) else names)
    ] = ()
    """Kind `factory`: only these activations are swapped, such as [relu], and gates stay; empty: each of the above."""

    @field_validator("negative_slope", "initial_slope", "alpha", "beta", "approximate")
    @classmethod
    def _belongs_to_the_name(cls, value: Any, info: ValidationInfo) -> Any:
        return _require_fitting(value, info, "name", ACTIVATION_PARAMETERS)

    @field_validator("replace")
    @classmethod
    def _are_activations(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = [name for name in ACTIVATION_PARAMETERS if name != "default"]
        if any(name not in known for name in names):
            raise PydanticCustomError("unknown_activation", "a list of " + ", ".join(known))
        return names

    @model_serializer(mode="wrap")
    def _only_what_belongs(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        keys = {"name", "replace"} if self.replace else {"name"}
        return {key: value for key, value in handler(self).items() if key in keys | {*ACTIVATION_PARAMETERS[self.name]}}

    def parameters(self) -> dict[str, Any]:
        """What the named activation is made with."""
        return {key: getattr(self, key) for key in ACTIVATION_PARAMETERS[self.name]}


class InitSection(Section):
    """A law of the initial weights; written as its name alone, or as {law: kaiming_normal, mode: fan_out}.

    `docs/initialization.md` has each law's formula and source.
    """

    law: LawName = "kaiming_normal"
    """`default` leaves everything as torch or the factory made it; every other law sets all biases to zero."""
    mode: Literal["fan_in", "fan_out"] = "fan_in"
    """`kaiming_*`: keep the signal's size forward (fan_in), or the gradient's backward (fan_out)."""
    gain: NonNegativeFloat = 0.0
    """Factor on the standard deviation. 0: the law's own, which is 1 for xavier and lecun, as in the papers, and that
    of the activation that follows for the others."""
    std: NonNegativeFloat = 0.0
    """`normal`, `truncated_normal`: the weights' standard deviation. 0: the law's own (0.01, 0.02)."""
    bound: PositiveFloat = 0.05
    """`uniform`: weights lie in [-bound, bound]. Keras's RandomUniform has the same."""
    value: float = 0.01
    """`constant`: each weight. Units of a layer then stay equal for ever, which is what this law is there to show."""
    sparsity: OpenFraction = 0.9
    """`sparse`: share of a unit's incoming weights that are zero."""
    tolerance: OpenFraction = 0.1
    """`lsuv`: a layer is left when its output's standard deviation is this near 1 (Mishkin & Matas 2016)."""
    max_tries: PositiveInt = 10
    """`lsuv`: rescalings of one layer at most; the paper's T_max."""
    residual: Literal["law", "none", "zero", "scaled"] = "law"
    """What ends a residual branch (its last norm's weight, else its last layer's): `zero`, the block starts as its
    shortcut; `scaled` by 1/sqrt(number of branches); `none`, drawn like the rest. `law`: `auto` takes zero where a
    norm ends the branch, else scaled; the other laws none."""

    @field_validator("mode", "gain", "std", "bound", "value", "sparsity", "tolerance", "max_tries", "residual")
    @classmethod
    def _belongs_to_the_law(cls, value: Any, info: ValidationInfo) -> Any:
        return _require_fitting(value, info, "law", LAW_PARAMETERS)

    @model_serializer(mode="wrap")
    def _only_what_belongs(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key in ("law", *LAW_PARAMETERS[self.law])}


class ModelSection(Section):
    """What is trained: a built-in model, or the user's own factory."""

    kind: Literal["mlp", "cnn", "resnet", "factory"] = "cnn"
    """`factory` calls `factory(input_shape=(C,H,W), num_classes=K, **options)`."""
    factory: str = ""
    """`module:factory` or `file.py:factory`, for kind `factory`."""
    options: dict[str, Any] = {}
    """Keyword arguments of the factory."""
    width: PositiveInt = 32
    """Units of an mlp's layer, or channels of the first stage of cnn and resnet."""
    depth: PositiveInt = 3
    """Hidden layers (mlp), stages (cnn), residual blocks a stage (resnet)."""
    activation: Annotated[ActivationSection, BeforeValidator(_named("name", "an activation"))] = ActivationSection()
    """Non-linearity after each hidden layer; left out, relu for the built-in models and `default` for a factory's.
    Kind `factory`: swapped, by class, for the activations it built."""
    init: Annotated[InitSection, BeforeValidator(_named("law", "a law"))] = InitSection()
    """Law of the initial weights; left out, kaiming_normal for the built-in models and `default` for a factory's."""

    @model_validator(mode="before")
    @classmethod
    def _what_is_left_out_depends_on_the_kind(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        is_factory = values.get("kind") == "factory"
        left_out = {"activation": "default", "init": "default"} if is_factory else {"activation": "relu"}
        return {**left_out, **values}

    @model_validator(mode="after")
    def _factory_goes_with_its_kind(self) -> ModelSection:
        if (self.kind == "factory") != bool(self.factory):
            raise ValueError("`factory` together with kind `factory`, and neither without the other")
        return self
