"""Initial weights in whole models: what follows a layer, branches, norms, heads, and what is left alone."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional

from pipeline.errors import ConfigError
from pipeline.job_model import ActivationSection, InitSection, ModelSection
from trainer.activations import ACTIVATIONS, make_activation
from trainer.checkpoint import weights_sha256
from trainer.gains import gains
from trainer.init_layers import norm_layers, weighted_layers
from trainer.init_trace import trace
from trainer.initialization import initialize
from trainer.models import build_model


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors: more threads only get in each other's way."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


class Functional(nn.Module):
    """Nothing here is visible as a module but the layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.written_out = nn.Conv2d(8, 8, 3, padding=1)
        self.branch_in = nn.Conv2d(8, 8, 3, padding=1)
        self.branch_out = nn.Conv2d(8, 8, 3, padding=1)
        self.narrow = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = functional.leaky_relu(self.stem(x), 0.3)
        x = self.written_out(x)
        x = x * torch.sigmoid(x)
        x = x + self.branch_out(functional.gelu(self.branch_in(x)))
        return self.head(functional.relu(self.narrow(x)).mean((2, 3)))


def followed_by(model, *args, **kwargs):
    return {record.name.removesuffix(".weight"): record.activation for record in initialize(model, *args, **kwargs)}


def test_functional_activations_are_seen_in_one_pass():
    example = torch.zeros(2, 3, 6, 6)
    assert followed_by(Functional(), "kaiming_normal", example=example) == {
        "stem": "leaky_relu",
        "written_out": "silu",
        "branch_in": "gelu",
        "branch_out": "identity",
        "narrow": "relu",
        "head": "identity",
    }
    stem = initialize(Functional(), "kaiming_normal", example=example)[0]
    assert stem.gain == pytest.approx(math.sqrt(2.0 / (1.0 + 0.3**2)))  # its own slope


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_seen_as_a_module_and_in_the_order_of_modules(name):
    def model():
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), make_activation(name), nn.Linear(4, 2))

    expected = {"0": name, "4": "identity"}
    assert followed_by(model(), "kaiming_normal", example=torch.zeros(3, 4)) == expected
    assert followed_by(model(), "kaiming_normal") == expected


def test_parameters_of_an_activation_make_its_gain():
    for section in (ActivationSection(name="elu", alpha=2.0), ActivationSection(name="softplus", beta=3.0)):
        model = nn.Sequential(nn.Linear(4, 4), make_activation(section), nn.Linear(4, 2))
        for example in (torch.zeros(2, 4), None):
            record = initialize(model, "kaiming_normal", example=example)[0]
            assert record.gain == pytest.approx(gains(section.name, section.parameters()).forward)


def test_without_a_pass_or_a_module_it_is_what_the_caller_says_or_relu():
    assert followed_by(Functional(), "kaiming_normal")["narrow"] == "relu"
    assert followed_by(Functional(), "kaiming_normal", "gelu")["narrow"] == "gelu"
    assert followed_by(Functional(), "kaiming_normal", "gelu")["head"] == "identity"
    assert followed_by(nn.Linear(3, 3), "kaiming_normal", "tanh") == {"weight": "tanh"}


def test_a_model_that_cannot_take_the_example_is_drawn_from_its_modules():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    assert followed_by(model, "kaiming_normal", example=torch.zeros(1, 9)) == {"0": "tanh", "2": "identity"}


def test_parts_that_autograd_does_not_show_are_drawn_from_the_modules():
    """A reentrant checkpoint runs its part under no_grad: nothing of it is in the graph but one node."""

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Linear(4, 4), nn.GELU())
            self.hidden = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.ELU())
            self.last = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 2))

        def forward(self, x):
            return self.last(torch.utils.checkpoint.checkpoint(self.hidden, self.stem(x), use_reentrant=True))

    records = initialize(Checkpointed(), "auto", example=torch.zeros(2, 4))
    assert [record.activation for record in records] == ["gelu", "tanh", "elu", "silu", "identity"]
    assert [record.is_first for record in records] == [True, False, False, False, False]
    assert [record.is_head for record in records] == [False, False, False, False, True]


def test_the_pass_leaves_no_trace():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 36, 2))
    model[1].eval()
    before, numbers = weights_sha256(model), torch.get_rng_state()
    found = trace(model, weighted_layers(model), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert len(found.followers) == 2
    assert before == weights_sha256(model)  # buffers are in it
    assert torch.equal(numbers, torch.get_rng_state())
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())


def make_resnet(init, **parameters):
    torch.manual_seed(0)
    return build_model(
        ModelSection(kind="resnet", width=8, depth=3, init=InitSection(law=init, **parameters)), (3, 16, 16), 5
    )


@pytest.mark.parametrize(
    ("init", "parameters", "expected"),
    [
        ("auto", {}, 0.0),
        ("auto", {"residual": "scaled"}, 1 / 3),
        ("auto", {"residual": "none"}, 1.0),
        ("kaiming_normal", {}, 1.0),
        ("kaiming_normal", {"residual": "zero"}, 0.0),
    ],
)
def test_the_last_norm_of_each_residual_branch_is_as_residual_says(init, parameters, expected):
    """Nine blocks; the two with more channels have a padded shortcut."""
    model = make_resnet(init, **parameters)
    ends = [module.norm2 for module in model.modules() if hasattr(module, "norm2")]
    assert len(ends) == 9
    for norm in ends:
        torch.testing.assert_close(norm.weight, torch.full_like(norm.weight, expected))
    others = [norm for norm in norm_layers(model) if norm not in ends]
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in others)
    assert not any(norm.bias.any() for norm in norm_layers(model))


def test_a_block_that_starts_as_its_shortcut_wakes_up():
    """Zeros would be useless if no gradient came through them."""
    model = make_resnet("auto")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(model(torch.randn(16, 3, 16, 16)), torch.arange(16) % 5).backward()
        optimizer.step()
    assert [name for name, each in model.named_parameters() if not each.grad.any()] == []


def test_a_branch_without_a_norm_is_scaled_by_its_last_layer():
    model = Functional()
    records = {record.name: record for record in initialize(model, "auto", example=torch.zeros(2, 3, 6, 6))}
    assert records["branch_out.weight"].branch_factor == 1.0  # 1 / sqrt(one branch)
    records = {
        record.name: record
        for record in initialize(model, InitSection(law="auto", residual="zero"), example=torch.zeros(2, 3, 6, 6))
    }
    assert records["branch_out.weight"].branch_factor == records["branch_out.weight"].std == 0.0
    assert not model.branch_out.weight.any()
    assert model.branch_in.weight.any()


def test_a_transformers_branches_are_its_attention_and_its_mlp():
    layers = [nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True) for _ in range(3)]
    model = nn.Sequential(*layers, nn.Linear(32, 4))
    records = {record.name: record for record in initialize(model, "auto", example=torch.zeros(2, 5, 32))}
    scaled = {name for name, record in records.items() if record.branch_factor != 1.0}
    assert scaled == {f"{n}.{end}.weight" for n in range(3) for end in ("self_attn.out_proj", "linear2")}
    weight = model[1].linear2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(1 / 64) / math.sqrt(6), rel=0.1)
    queries = model[0].self_attn.in_proj_weight.chunk(3)[0]
    assert queries.std().item() == pytest.approx(math.sqrt(1 / 32), rel=0.15)  # as a layer of its own: fan_in 32


def test_a_gate_starts_half_open_and_a_softmax_ends_no_head():
    """Xavier's factor 4 for a sigmoid is for a hidden layer's; a gate's logits would start with it at 0 or 1."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.gate, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            x = torch.tanh(self.stem(x))
            return {"logits": functional.log_softmax(self.head(x * torch.sigmoid(self.gate(x))), dim=1)}

    records = initialize(Gated(), "auto", example=torch.zeros(2, 4))
    assert [record.activation for record in records] == ["tanh", "identity", "identity"]
    assert [record.is_head for record in records] == [False, False, True]


def test_a_projected_shortcut_is_no_branch():
    """Post-activation block whose shortcut has a layer and a norm of its own: only the longer side ends in zero."""

    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.long = nn.Sequential(
                nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
                nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4),
            )  # fmt: skip
            self.short = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

        def forward(self, x):
            out = self.long(x)
            out += self.short(x)
            return functional.relu(out)

    model = Projected()
    initialize(model, "auto", example=torch.zeros(2, 3, 6, 6))
    assert not model.long[4].weight.any()
    assert torch.equal(torch.ones(4), model.short[1].weight)


def test_sums_that_are_no_shortcut_are_no_branch():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.position = nn.Parameter(torch.zeros(1, 4))

        def forward(self, x):
            return self.head(self.left(x) + self.right(x) + self.position.expand(2, 4))

    model = Sums()
    assert trace(model, weighted_layers(model), torch.zeros(2, 4)).num_branches == 0


def test_auto_takes_the_table_and_the_places_that_differ_from_it():
    model = build_model(ModelSection(kind="cnn", width=8, init="auto", activation="silu"), (3, 16, 16), 5)
    records = initialize(model, "auto", example=torch.zeros(2, 3, 16, 16))
    # Normed convolutions: He backward, which is fan_out with the backward gain.
    assert [(record.law, record.gain) for record in records[:3]] == [("kaiming_normal", gains("silu").backward)] * 3
    assert records[1].std == pytest.approx(gains("silu").backward / math.sqrt(16 * 9))
    assert (records[3].law, records[3].gain, records[3].is_head) == ("lecun_normal", 1.0, True)
    plain = build_model(ModelSection(kind="mlp", depth=2, init="auto", activation="tanh"), (1, 4, 4), 5)
    records = initialize(plain, "auto", example=torch.zeros(2, 1, 4, 4))
    assert [record.law for record in records] == ["xavier_normal", "xavier_normal", "lecun_normal"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_auto_keeps_a_deep_nets_signal_and_its_gradient_as_theory_says(activation):
    """12 layers of 128 units, decades a layer; what is far from zero is what no scale cures."""
    forward, backward = profile(activation, "auto")
    assert forward == pytest.approx(0.0, abs=0.045)
    if activation == "sigmoid":
        assert -0.25 < backward < -0.15  # Xavier alone: -0.63
    else:
        found = gains(activation)
        assert backward == pytest.approx(math.log10(found.forward / found.backward), abs=0.08)


def test_plain_laws_show_what_is_wrong_with_them():
    """Numbers of the notes' table: torch's own weights lose 0.39 decades a ReLU layer, Xavier's 0.15."""
    assert profile("relu", "default") == pytest.approx((-0.39, -0.39), abs=0.03)
    assert profile("relu", "xavier_normal") == pytest.approx((-0.15, -0.15), abs=0.03)
    assert profile("relu", "kaiming_normal") == pytest.approx((0.0, 0.0), abs=0.03)
    assert profile("sigmoid", "xavier_normal") == pytest.approx((-0.01, -0.63), abs=0.03)


def profile(activation, init, depth=12, width=128, num_seeds=3):
    """Slopes of log10 RMS of pre-activations (forward) and of their gradients (towards the images), per layer."""
    slopes = []
    for seed in range(num_seeds):
        torch.manual_seed(seed)
        layers = [(nn.Linear(width, width, bias=False), make_activation(activation)) for _ in range(depth)]
        model = nn.Sequential(*itertools.chain(*layers), nn.Linear(width, 10))
        x = torch.randn(width, width)
        initialize(model, init, example=x[:2])
        outputs = []
        for module in model:
            x = module(x)
            if isinstance(module, nn.Linear):
                x.retain_grad()
                outputs.append(x)
        functional.cross_entropy(x, torch.arange(width) % 10).backward()
        rms = [[part.detach().square().mean().sqrt().log10().item() for part in parts] for parts in (
            outputs[:-1], [output.grad for output in outputs[:-1]],
        )]  # fmt: skip
        slopes.append([np.polyfit(range(depth), rms[0], 1)[0], -np.polyfit(range(depth), rms[1], 1)[0]])
    return tuple(np.median(slopes, axis=0))


def test_a_first_loss_is_near_the_logarithm_of_the_number_of_classes():
    torch.manual_seed(0)
    for kind in ("mlp", "cnn", "resnet"):
        model = build_model(ModelSection(kind=kind, init="auto"), (3, 16, 16), 10)
        loss = functional.cross_entropy(model(torch.randn(64, 3, 16, 16)), torch.arange(64) % 10).item()
        assert loss < 1.5 * math.log(10), kind


def test_frozen_parameters_and_those_of_no_layer_stay_as_they_are():
    model = Functional()
    model.token = nn.Parameter(torch.full((1, 8), 0.5))
    model.norm = nn.LayerNorm(8)
    nn.init.constant_(model.norm.weight, 0.25)
    model.norm.weight.requires_grad_(False)
    model.stem.requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    records = initialize(model, "auto", example=torch.zeros(2, 3, 6, 6))
    same = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert same == {"stem.weight", "stem.bias", "token", "norm.weight", "norm.bias"}  # the norm's bias was zero
    assert "stem.weight" not in {record.name for record in records}


def test_tied_weights_are_drawn_once_and_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(50, 16, padding_idx=0)
            self.head = nn.Linear(16, 50, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, x):
            return self.head(self.tokens(x))

    model = Tied()
    (record,) = initialize(model, "kaiming_normal", example=torch.tensor([[1, 2]]))
    assert (record.name, record.law, record.std) == ("tokens.weight", "normal", 0.02)
    assert model.head.weight is model.tokens.weight
    assert model.tokens.weight[1:].std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.tokens.weight[0].any()
    assert initialize(model, InitSection(law="normal", std=0.5))[0].std == 0.5


def test_each_gate_of_a_recurrent_layer_is_a_layer():
    model = nn.LSTM(20, 30)
    initialize(model, InitSection(law="orthogonal", gain=1.0))
    for gate in model.weight_hh_l0.detach().chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(30), atol=1e-5, rtol=0.0)
    assert not model.bias_ih_l0.any()


def test_parametrized_and_lazy_layers_are_left_alone():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.LazyLinear(3))
    before = model[0].weight.clone()
    assert initialize(model, "zeros") == ()
    assert torch.equal(before, model[0].weight)


def test_default_leaves_everything():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = weights_sha256(model)
    assert initialize(model, "default", "relu") == ()
    assert before == weights_sha256(model)


@pytest.mark.parametrize(("init", "activation", "way_out"), [
    ("kaming_normal", None, "did you mean kaiming_normal?"), ("zeros", "leakyrelu", "did you mean leaky_relu?"),
])  # fmt: skip
def test_unknown_names_are_refused_with_the_nearest(init, activation, way_out):
    with pytest.raises(ConfigError) as caught:
        initialize(nn.Linear(2, 2), init, activation)
    assert way_out in str(caught.value)


def test_a_thousand_residual_blocks_are_read_quickly_and_without_recursion():
    """The graph has 5,000 operations in a row; Python's stack ends at 1,000."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return x + self.layer(functional.relu(x))

    model = nn.Sequential(*(Block() for _ in range(1000)), nn.Linear(2, 2))
    found = trace(model, weighted_layers(model), torch.zeros(2, 2))
    assert (found.num_branches, len(found.branch_ends)) == (1000, 1000)
