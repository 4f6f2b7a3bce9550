"""The job's `model` section: names with parameters, and errors at their lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import dump_job, load_job
from pipeline.errors import ConfigError
from pipeline.job import ModelSection
from pipeline.job_model import ACTIVATION_PARAMETERS, LAW_PARAMETERS, ActivationSection, InitSection

JOB = """\
sources:
  digits: {kind: digits}
train: {source: digits, chain: [Normalize, ToTensorV2]}
model:
"""


def load(tmp_path, model):
    path = tmp_path / "job.yaml"
    path.write_text(JOB + "".join(f"  {line}\n" for line in model.splitlines()))
    return load_job(path)


def test_a_name_and_a_map_with_only_that_name_are_the_same(tmp_path):
    plain = load(tmp_path, "init: xavier_normal\nactivation: gelu").config.model
    mapped = load(tmp_path, "init: {law: xavier_normal}\nactivation:\n  name: gelu").config.model
    assert plain == mapped == ModelSection(init="xavier_normal", activation="gelu")


def test_parameters_are_read_and_written_and_read_again(tmp_path):
    text = """\
activation: {name: leaky_relu, negative_slope: 0.2, replace: [relu]}
init:
  law: kaiming_normal
  mode: fan_out
  gain: 1.5"""
    job = load(tmp_path, text)
    assert job.config.model.activation.parameters() == {"negative_slope": 0.2}
    assert (job.config.model.init.mode, job.config.model.init.gain) == ("fan_out", 1.5)
    again = tmp_path / "again.yaml"
    again.write_text(dump_job(job.config))
    assert load_job(again).config.model == job.config.model


@given(
    st.sampled_from(list(LAW_PARAMETERS)),
    st.sampled_from(list(ACTIVATION_PARAMETERS)),
    st.sampled_from(["mlp", "factory"]),
)
def test_what_a_section_writes_it_reads_and_it_writes_only_what_has_an_effect(law, activation, kind):
    factory = "m:f" if kind == "factory" else ""
    section = ModelSection(kind=kind, factory=factory, init=law, activation=activation)
    written = section.model_dump(mode="json")
    assert ModelSection.model_validate(written) == section
    assert set(written["init"]) == {"law", *LAW_PARAMETERS[law]}
    assert set(written["activation"]) == {"name", *ACTIVATION_PARAMETERS[activation]}


def test_a_left_out_activation_is_relus_name_in_the_record_of_a_run():
    """A resumed run compares the two, and a job that writes relu is the same job."""
    assert ModelSection() == ModelSection(activation="relu") == ModelSection(init="kaiming_normal")


def test_a_factory_keeps_its_weights_and_activations_unless_told():
    section = ModelSection(kind="factory", factory="m:f")
    assert (section.init.law, section.activation.name) == ("default", "default")
    assert ModelSection(kind="factory", factory="m:f", init="auto").init.law == "auto"
    assert (ModelSection().init.law, ModelSection().activation.name) == ("kaiming_normal", "relu")


ERRORS = {
    "init: kaming_normal": (5, "model.init.law", "'kaming_normal'", "did you mean kaiming_normal?"),
    "init:\n  law: kaiming_normal\n  modus: fan_in": (7, "model.init.modus", "'modus'", "did you mean mode?"),
    "init:\n  law: xavier_normal\n  mode: fan_in": (7, "model.init.mode", "'fan_in'", "mode is for kaiming_"),
    "init:\n  law: kaiming_normal\n  mode: fan_on": (7, "model.init.mode", "'fan_on'", "did you mean fan_in?"),
    "init: {law: sparse, sparsity: 1.5}": (5, "model.init.sparsity", "1.5", ""),
    "init: 3": (5, "model.init", "3", ""),
    "activation: gleu": (5, "model.activation.name", "'gleu'", "did you mean gelu?"),
    "activation: {name: relu, negative_slope: 0.1}": (
        5, "model.activation.negative_slope", "0.1", "leave it out; negative_slope is for leaky_relu",
    ),
    "activation: {name: gelu, replace: [rely]}": (5, "model.activation.replace", "['rely']", ""),
}  # fmt: skip


@pytest.mark.parametrize("text", ERRORS)
def test_a_wrong_name_or_parameter_is_told_at_its_line(text, tmp_path):
    line, path, got, way_out = ERRORS[text]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    (problem,) = caught.value.problems
    assert (problem.line, problem.path, problem.got) == (line, path, got)
    assert way_out in problem.way_out


def test_sections_made_in_python_are_checked_too():
    with pytest.raises(ValueError, match="a parameter of zeros"):
        InitSection(law="zeros", gain=2.0)
    with pytest.raises(ValueError, match="a parameter of relu"):
        ActivationSection(name="relu", alpha=2.0)
