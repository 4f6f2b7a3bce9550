"""Writes docs/initialization.md from the tables: laws, gains, what `auto` takes, and the rules around them.

    python -m trainer.init_page > docs/initialization.md

Every name, formula, number and parameter is taken from the code; a test fails when the page is not what this prints.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from pipeline.job_model import ACTIVATION_PARAMETERS, LAW_PARAMETERS, ActivationSection, InitSection
from pipeline.section import Section
from trainer.gains import FORMULAS, gains
from trainer.init_laws import AUTO_LAWS, EMBEDDING_STD, INIT_LAWS

_TORCH_GAINS = {
    "identity": nn.init.calculate_gain("linear"),
    "sigmoid": nn.init.calculate_gain("sigmoid"),
    "tanh": nn.init.calculate_gain("tanh"),
    "relu": nn.init.calculate_gain("relu"),
    "leaky_relu": nn.init.calculate_gain("leaky_relu"),
    "selu": nn.init.calculate_gain("selu"),
}

_HEAD = """# Initial weights and activations

Written by `python -m trainer.init_page` from the tables in `trainer/` and `pipeline/job_model.py`; do not edit.

In a job, a plain name or a map:

```yaml
model:
  kind: resnet
  init: auto
  activation: {name: leaky_relu, negative_slope: 0.1}
```

For a model of your own (`kind: factory`) both are left out by default, and it keeps the weights and activations that
the factory made. In your own code:

```python
from trainer.activations import swap_activations
from trainer.initialization import initialize
from trainer.lsuv import lsuv

swap_activations(model, "gelu")  # before the optimizer is made: a PReLU has a parameter
drawn = initialize(model, "auto", example=images_NCHW)  # what each weight was drawn from
lsuv(model, images_NCHW)  # or, instead: unit standard deviations on this batch
```
"""

_LAWS = """## Laws

fan_in is the number of connections into one output: inputs of a linear layer; input channels of a group times taps of
the kernel for a convolution (dilation only spreads the taps). fan_out is the number out of one input: outputs; output
channels of a group times taps. A transposed convolution's output meets one tap in (product of strides), so its fan_in
is divided by that. torch's own `_calculate_fan_in_and_fan_out` counts all groups in fan_out, and takes a transposed
convolution's output channels for its inputs. `default` leaves every weight and bias as it was made."""

_GAINS = """## Gains

For z ~ N(0, 1): forward is 1/sqrt(E[f(z)^2]), backward 1/sqrt(E[f'(z)^2]), both integrated (`trainer/gains.py`), not
typed. Weights of standard deviation forward/sqrt(fan_in) keep the size of the signal from layer to layer, and
backward/sqrt(fan_out) that of the gradient. `shared` is the part of the signal that is a mean, the same for every
sample. With the forward gain, a gradient grows by log10(forward/backward) decades a layer: sigmoid's shrinks by 0.41,
which no scale cures. torch's 5/3 for tanh and 3/4 for SELU are conventions; with 5/3 pre-activations settle at a
standard deviation of 1.09 instead of 1."""

_AUTO = """## What `auto` takes

By the activation that follows the layer. Before a norm layer, whose scale cancels that of the weights, a convolution
takes He's law with fan_out and the backward gain."""

_RULES = f"""## Rules for the rest

- **The activation that follows** is read from autograd's graph of one forward pass, so functional calls (`F.relu`) are
  seen; without a pass, from the order of the modules; where that shows none either, it is what the caller says
  (`activation=`), or relu.
- **Heads** (no layer comes after) are followed by `identity`, whatever function ends the model: logits of size 1 keep
  the first loss near ln(classes). With `auto` that is lecun_normal. So are gates (a sigmoid that multiplies something
  other than its own input), where a pass shows them.
- **First layers** under `auto` take lecun_normal where others take He's: images are normalized to mean square 1, which
  is what a gain brings an activation's output back to.
- **Biases** of linear, convolution, attention and recurrent layers are zero.
- **Norm layers** have weight 1 and bias 0. The scale of a layer that a norm follows cancels in the forward pass (its
  learning rate is in effect lr / |w|^2), and its bias does nothing.
- **Residual branches** (`residual`): `zero` sets what ends the branch to zero, the last norm's weight (Goyal et al.
  2017, section 5.1), else the last layer's (Zhang et al. 2019, Fixup); `scaled` multiplies it by
  1/sqrt(number of branches) (Radford et al. 2019, GPT-2). `law`, the default: `auto` takes zero where a norm ends the
  branch, else scaled; other laws leave branches alone. A branch that ends in an activation is left alone: zeros would
  never let a gradient through ReLU.
- **Embeddings** take laws with a fixed scale as they are, and N(0, {EMBEDDING_STD}^2) under laws that go by fans
  (Radford et al. 2018, section 4.1); the padding row is zero.
- **Attention** (`nn.MultiheadAttention`): query, key and value are a layer each. **Recurrent** layers: so is
  each gate.
- **Tied weights** are drawn once, under the first module that has them. **Frozen** parameters stay as they are, and so
  do parameters that are no layer's own (class tokens, positions, layer scales) and parametrized weights.
- **Orthogonal, delta-orthogonal and sparse** hold within each group of a convolution. Linear layers have no kernel, so
  delta-orthogonal is orthogonal there.
- **LSUV** looks at data: orthogonal weights, then each layer, in the order of calls, divided by its output's standard
  deviation on one batch. Norms use the batch's statistics meanwhile. Never when a run is resumed.
- Weights are drawn on the CPU in float32, so a seed means the same weights on every device."""


def page() -> str:
    """The whole page."""
    return "\n".join(
        [
            _HEAD,
            _LAWS,
            "",
            *_table(
                ("law", "standard deviation of a weight", "gain, if not given", "parameters", "source"), _law_rows()
            ),
            "",
            "Parameters:",
            "",
            *_parameters(InitSection, LAW_PARAMETERS),
            "",
            _GAINS,
            "",
            *_table(("activation", "f(z)", "forward", "backward", "mean", "shared", "torch's gain"), _gain_rows()),
            "",
            "Parameters:",
            "",
            *_parameters(ActivationSection, ACTIVATION_PARAMETERS),
            "",
            _AUTO,
            "",
            *_table(("followed by", "law", "gain", "why"), _auto_rows()),
            "",
            _RULES,
            "",
        ]
    )


def _law_rows() -> Iterable[tuple[str, ...]]:
    own_gain = {"none": "", "one": "1", "forward": "forward", "mode": "forward; backward for fan_out"}
    for name, law in INIT_LAWS.items():
        parameters = ", ".join(LAW_PARAMETERS[name])
        yield name, law.formula, own_gain[law.own_gain], parameters, law.origin
    yield "auto", "by the activation, see below", "", ", ".join(LAW_PARAMETERS["auto"]), "the table below"


def _gain_rows() -> Iterable[tuple[str, ...]]:
    for name, formula in FORMULAS.items():
        found = gains(name)
        torch_gain = f"{_TORCH_GAINS[name]:.4f}" if name in _TORCH_GAINS else "none"
        numbers = (found.forward, found.backward, abs(found.mean), found.shared)
        yield name, formula.text, *(f"{number:.4f}" for number in numbers), torch_gain


def _auto_rows() -> Iterable[tuple[str, ...]]:
    for activation, row in AUTO_LAWS.items():
        gain = row.gain if isinstance(row.gain, str) else f"{row.gain:g}" if row.gain else "the law's own"
        yield activation, row.law, gain, row.reason


def _parameters(section: type[Section], table: dict[str, tuple[str, ...]]) -> Iterable[str]:
    used = {name for names in table.values() for name in names}
    for name, field in section.model_fields.items():
        if name in used or name == "replace":
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            yield f"- `{name}` ({default}): {' '.join((field.description or '').split())}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterable[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(page(), end="")
