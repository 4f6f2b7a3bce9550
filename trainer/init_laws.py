"""The laws of initial weights, as data: formula, standard deviation, distribution, source.

In:  a layer's shape, the gains of the activation that follows, the job's `init` section.
Out: the law's standard deviation and bound; for `auto`, which law a layer gets and why.
Numbers in, numbers out: no torch. `trainer/init_draw.py` draws, `docs/initialization.md` prints the tables, a test
measures each law on each kind of layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipeline.job_model import InitSection
from trainer.gains import Gains

Distribution = Literal["constant", "normal", "uniform", "truncated_normal", "orthogonal", "delta_orthogonal", "sparse"]
OwnGain = Literal["none", "one", "forward", "mode"]
"""A law's gain when the job gives none: it has none, 1, the activation's forward gain, or the one `mode` asks for."""

TRUNCATION = 2.0
"""`truncated_normal` is cut at so many standard deviations of the uncut normal."""
TRUNCATED_STD = 0.8796256610342398
"""Standard deviation of N(0, 1) cut at +-2: sqrt(1 - 4 pdf(2) / (2 cdf(2) - 1))."""
EMBEDDING_STD = 0.02
"""Embeddings under laws that go by fans, which a table of rows has none of (Radford et al. 2018, section 4.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """A linear or convolution layer's weight, one group of it."""

    num_outputs: int
    """Output channels of a group."""
    num_inputs: int
    """Input channels of a group."""
    num_taps: int = 1
    """Positions of the kernel; dilation only spreads them."""
    taps_apart: int = 1
    """Transposed convolutions: product of the strides; an output meets only every so manieth tap."""

    @property
    def fan_in(self) -> float:
        """Connections into one output; a mean over outputs, where the stride does not divide the kernel."""
        return self.num_inputs * self.num_taps / self.taps_apart

    @property
    def fan_out(self) -> float:
        """Connections out of one input. A convolution's stride is left out, as He et al. 2015 do."""
        return self.num_outputs * self.num_taps

    @property
    def longer_side(self) -> int:
        """Of the weight as a matrix of outputs x (inputs x taps)."""
        return max(self.num_outputs, self.num_inputs * self.num_taps)


@dataclass(frozen=True, slots=True, kw_only=True)
class InitLaw:
    """A distribution of weights, its standard deviation, and who proposed it."""

    distribution: Distribution
    std: Callable[[LayerShape, float, InitSection], float]
    """(shape, gain, section) -> root mean square of all weights about their mean."""
    formula: str
    own_gain: OwnGain
    origin: str


def _fan(shape: LayerShape, section: InitSection) -> float:
    return shape.fan_in if section.mode == "fan_in" else shape.fan_out


def _xavier(shape: LayerShape, gain: float, section: InitSection) -> float:
    return gain * math.sqrt(2.0 / (shape.fan_in + shape.fan_out))


def _kaiming(shape: LayerShape, gain: float, section: InitSection) -> float:
    return gain / math.sqrt(_fan(shape, section))


def _over_fan_in(shape: LayerShape, gain: float, section: InitSection) -> float:
    return gain / math.sqrt(shape.fan_in)


def _orthogonal(shape: LayerShape, gain: float, section: InitSection) -> float:
    # Orthonormal rows of length n (or columns, whichever is longer) have mean square 1/n.
    return gain / math.sqrt(shape.longer_side)


def _delta_orthogonal(shape: LayerShape, gain: float, section: InitSection) -> float:
    return gain / math.sqrt(max(shape.num_outputs, shape.num_inputs) * shape.num_taps)


def num_kept(num_inputs: int, sparsity: float) -> int:
    """Weights of one unit that `sparse` does not make zero; at least one."""
    return max(1, round((1.0 - sparsity) * num_inputs))


INIT_LAWS: dict[str, InitLaw] = {
    "zeros": InitLaw(
        distribution="constant",
        std=lambda shape, gain, section: 0.0,
        formula="w = 0",
        own_gain="none",
        origin="to see symmetry not break; right for biases and the ends of residual branches",
    ),
    "constant": InitLaw(
        distribution="constant",
        std=lambda shape, gain, section: 0.0,
        formula="w = value",
        own_gain="none",
        origin="to see symmetry not break",
    ),
    "normal": InitLaw(
        distribution="normal",
        std=lambda shape, gain, section: section.std or 0.01,
        formula="std (0.01)",
        own_gain="none",
        origin="Krizhevsky et al. 2012, section 5",
    ),
    "uniform": InitLaw(
        distribution="uniform",
        std=lambda shape, gain, section: section.bound / math.sqrt(3.0),
        formula="bound / sqrt(3), bound 0.05",
        own_gain="none",
        origin="Keras's RandomUniform",
    ),
    "truncated_normal": InitLaw(
        distribution="truncated_normal",
        std=lambda shape, gain, section: section.std or 0.02,
        formula="std (0.02), after the cut at 2 deviations of the uncut one",
        own_gain="none",
        origin="Devlin et al. 2019 (BERT's code; there 0.02 is before the cut)",
    ),
    "xavier_uniform": InitLaw(
        distribution="uniform",
        std=_xavier,
        formula="gain sqrt(2 / (fan_in + fan_out)); bound gain sqrt(6 / (fan_in + fan_out))",
        own_gain="one",
        origin="Glorot & Bengio 2010, equation 16",
    ),
    "xavier_normal": InitLaw(
        distribution="normal",
        std=_xavier,
        formula="gain sqrt(2 / (fan_in + fan_out))",
        own_gain="one",
        origin="Glorot & Bengio 2010, equation 12",
    ),
    "kaiming_uniform": InitLaw(
        distribution="uniform",
        std=_kaiming,
        formula="gain / sqrt(fan); bound gain sqrt(3 / fan)",
        own_gain="mode",
        origin="He et al. 2015, equations 10 and 14",
    ),
    "kaiming_normal": InitLaw(
        distribution="normal",
        std=_kaiming,
        formula="gain / sqrt(fan)",
        own_gain="mode",
        origin="He et al. 2015, equations 10 and 14",
    ),
    "lecun_uniform": InitLaw(
        distribution="uniform",
        std=_over_fan_in,
        formula="gain / sqrt(fan_in); bound gain sqrt(3 / fan_in)",
        own_gain="one",
        origin="LeCun et al. 1998, equation 16",
    ),
    "lecun_normal": InitLaw(
        distribution="normal",
        std=_over_fan_in,
        formula="gain / sqrt(fan_in)",
        own_gain="one",
        origin="LeCun et al. 1998, equation 16; for SELU Klambauer et al. 2017",
    ),
    "orthogonal": InitLaw(
        distribution="orthogonal",
        std=_orthogonal,
        formula="gain / sqrt(max(outputs, inputs x taps)); rows or columns orthogonal, of length gain",
        own_gain="forward",
        origin="Saxe et al. 2014",
    ),
    "delta_orthogonal": InitLaw(
        distribution="delta_orthogonal",
        std=_delta_orthogonal,
        formula="gain / sqrt(max(outputs, inputs) x taps); the kernel's centre orthogonal, the rest 0",
        own_gain="forward",
        origin="Xiao et al. 2018, algorithm 1 (there outputs >= inputs)",
    ),
    "sparse": InitLaw(
        distribution="sparse",
        std=_over_fan_in,
        formula="gain / sqrt(fan_in); each unit has only (1 - sparsity) fan_in inputs, of std gain / sqrt(that number)",
        own_gain="forward",
        origin="Martens 2010, section 5 (there 15 inputs of std 1)",
    ),
    "lsuv": InitLaw(
        distribution="orthogonal",
        std=_orthogonal,
        formula="as orthogonal with gain 1; then each layer divided by its output's std on a batch, until that is 1",
        own_gain="one",
        origin="Mishkin & Matas 2016, algorithm 1",
    ),
}
"""`default` is not here: it leaves weights and biases alone. `auto` is `AUTO_LAWS`."""


def law_gain(section: InitSection, gains: Gains) -> float:
    """The factor on a law's standard deviation before an activation with these gains; 1 for laws without one."""
    own_gain = INIT_LAWS[section.law].own_gain
    if own_gain == "none":
        return 1.0
    if section.gain:
        return section.gain
    if own_gain == "one":
        return 1.0
    return gains.backward if own_gain == "mode" and section.mode == "fan_out" else gains.forward


def law_std(section: InitSection, shape: LayerShape, gains: Gains) -> float:
    """The standard deviation of one weight of this layer."""
    return INIT_LAWS[section.law].std(shape, law_gain(section, gains), section)


def law_bound(law: str, std: float) -> float:
    """No weight is larger than this; inf where the distribution has no end or its end is no formula."""
    distribution = INIT_LAWS[law].distribution
    if distribution == "uniform":
        return math.sqrt(3.0) * std  # the standard deviation of U(-b, b) is b / sqrt(3)
    return TRUNCATION / TRUNCATED_STD * std if distribution == "truncated_normal" else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoLaw:
    """What `auto` takes before one activation."""

    law: Literal["kaiming_normal", "lecun_normal", "xavier_normal"]
    gain: float | Literal["forward"] = 0.0
    """0: the law's own; `forward`: the activation's."""
    reason: str


_HE = "He et al. 2015; backward and forward gain agree"
_SMOOTH = "He's argument with the computed forward gain; gradients grow by log10(forward / backward) decades a layer"
AUTO_LAWS: dict[str, AutoLaw] = {
    "identity": AutoLaw(law="lecun_normal", reason="nothing follows: 1 / sqrt(fan_in) keeps the size"),
    "relu": AutoLaw(law="kaiming_normal", reason=_HE),
    "relu6": AutoLaw(law="kaiming_normal", reason=_HE),
    "leaky_relu": AutoLaw(law="kaiming_normal", reason=_HE),
    "prelu": AutoLaw(law="kaiming_normal", reason=_HE),
    "elu": AutoLaw(law="kaiming_normal", reason=_SMOOTH),
    "gelu": AutoLaw(law="kaiming_normal", reason=_SMOOTH),
    "silu": AutoLaw(law="kaiming_normal", reason=_SMOOTH),
    "mish": AutoLaw(law="kaiming_normal", reason=_SMOOTH),
    "hardswish": AutoLaw(law="kaiming_normal", reason=_SMOOTH),
    "selu": AutoLaw(law="lecun_normal", reason="Klambauer et al. 2017; its gain is 1"),
    "tanh": AutoLaw(law="xavier_normal", gain="forward", reason="Glorot & Bengio 2010, with tanh's gain"),
    "sigmoid": AutoLaw(
        law="xavier_normal",
        gain=4.0,
        reason="slope 1/4 at 0, so 4 (as the Theano tutorials have it); no gain suits both directions (1.85 and 4.72): "
        "not for deep hidden layers",
    ),
    "softplus": AutoLaw(
        law="kaiming_normal", reason="keeps the size, but 71 % of it is a mean that all samples share: avoid when deep"
    ),
}
"""Activation that follows -> law. A test holds the keys to those of `FORMULAS`."""


def auto_section(
    activation: str, gains: Gains, *, is_first: bool, is_head: bool, is_normed_convolution: bool
) -> InitSection:
    """What `auto` takes for one layer.

    A norm right after a convolution sets the forward size, so the backward one decides: fan_out where the law is He's
    (as torchvision's ResNets). A head (no layer after it) starts with logits of size 1 whatever function ends the
    model, so that the first loss is near ln(classes). A first layer takes in normalized images, of mean square 1 and
    not 1 / gain^2. He et al. 2015 (section 2.2) find that factor harmless, and for ReLU it is; but the size of a
    signal through GELU, SiLU or Hardswish runs away from what it starts at if that is not 1: 12 layers of 128 units
    with SiLU grow by 0.06 decades each with the gain in the first, and by 0.02 without.
    """
    row = AUTO_LAWS["identity" if is_head else activation]
    gain = gains.forward if row.gain == "forward" else row.gain
    if row.law == "kaiming_normal" and is_normed_convolution:
        return InitSection(law="kaiming_normal", mode="fan_out", gain=gain)
    if is_first and row.law == "kaiming_normal":
        return InitSection(law="lecun_normal")
    return InitSection(law=row.law, gain=gain)
