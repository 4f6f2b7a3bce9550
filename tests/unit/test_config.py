"""Job and chain files: what YAML means here, where errors are placed, what a digest depends on."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import dump_chain, dump_job, kind_of_file, load_chain, load_job, parse_yaml
from pipeline.errors import ConfigError, Problem
from pipeline.job import initial_workers, worker_bounds
from pipeline.located import Located, ProblemList
from pipeline.recipe import Chain, ChainNode, Decode, Recipe
from tests.sizes import cases

JOB = """\
sources:
  photos: {kind: folder, path: data/train}
  held: {kind: folder, path: /data/held}
train:
  source: photos
  chain: chains/train.yaml
eval:
  source: held
  chain: [Normalize, ToTensorV2]
optimizer:
  lr: 1e-3
"""


def parse(text: str) -> Any:
    problems = ProblemList()
    located = parse_yaml(text.encode(), "f", problems)
    assert not problems.problems
    return located.plain()


def problems_of(text: str) -> tuple[Problem, ...]:
    problems = ProblemList()
    try:
        parse_yaml(text.encode(), "f", problems)
    except ConfigError as error:
        problems.take(error)
    return problems.in_order()


@pytest.fixture(name="job")
def _job(tmp_path: Path) -> Path:
    (tmp_path / "chains").mkdir()
    (tmp_path / "chains" / "train.yaml").write_text("- HorizontalFlip\n- ToTensorV2\n")
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path / "job.yaml"


def refused(job: Path, *overrides: str) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as caught:
        load_job(job, overrides)
    return {problem.path: problem for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E+3", 1000.0), ("-.5", -0.5), ("3.", 3.0), ("010", 10), ("+7", 7),
        ("true", True), ("False", False), ("~", None), ("null", None),
        ("yes", "yes"), ("off", "off"), ("1_000", "1_000"), ("1:30", "1:30"), ("0x10", "0x10"),
        ("2.0.8", "2.0.8"), ("2026-01-01", "2026-01-01"), ("'1e-3'", "1e-3"), ('"true"', "true"), (".5.", ".5."),
    ],
)  # fmt: skip
def test_a_plain_scalar_means_what_yaml_1_2_says(text: str, value: Any) -> None:
    got = parse(text)
    assert (got, type(got)) == (value, type(value))


def test_every_key_and_value_knows_its_line() -> None:
    root = parse_yaml(b"a:\n  - 1\n  - b:\n      2\nc: &x [3]\nd: *x\n", "f", ProblemList())
    assert isinstance(root.items["a"].value, tuple)
    entry: Located = root.items["a"].value[1].items["b"]
    assert (entry.key_line, entry.line, root.items["d"].key_line) == (3, 4, 6)
    assert root.plain() == {"a": [1, {"b": 2}], "c": [3], "d": [3]}


def test_an_equal_key_is_an_error_with_both_lines() -> None:
    (problem,) = problems_of("a: 1\nb: 2\na: 3\n")
    assert problem.line == 3
    assert "line 1" in problem.expected


def test_all_problems_of_a_file_are_found_at_once() -> None:
    text = "a: .inf\nb: 1\nb: 2\n3: c\nd: {<<: {}}\ne: 99999999999999999999\n"
    assert [problem.line for problem in problems_of(text)] == [1, 3, 4, 5, 6]


def test_paths_in_a_job_are_relative_to_its_folder(job: Path) -> None:
    (job.parent / "mine.py").write_text("")
    overrides = ["model={kind: factory, factory: 'mine.py:net'}", "plugins=[mine.py]"]
    loaded = load_job(job, overrides)
    plain = loaded.config.model_dump(mode="json")
    assert plain["sources"]["photos"]["path"] == str(job.parent / "data/train")
    assert plain["sources"]["held"]["path"] == "/data/held"
    assert plain["model"]["factory"] == f"{job.parent}/mine.py:net"
    assert plain["plugins"] == [f"{job.parent}/mine.py"]
    assert list(loaded.train.plugins) == ["mine"]
    assert loaded.train.chain.file == str(job.parent / "chains/train.yaml")
    assert loaded.eval is not None
    assert loaded.eval.chain.path == "eval.chain"


def test_a_dumped_job_loads_to_the_same_job(job: Path) -> None:
    first = load_job(job, ["seed=9223372036854775807", "schedule.min_lr=1e-7"])
    (job.parent / "again.yaml").write_text(dump_job(first.config))
    again = load_job(job.parent / "again.yaml")
    assert again.config == first.config
    assert again.train.digest == first.train.digest


SCHEDULE = "[{from_epoch: 0, use: chains/train.yaml}, {from_epoch: 2, use: weak.yaml}, {from_epoch: 4, use: [Blur]}]"


@pytest.fixture(name="scheduled_job")
def _scheduled_job(job: Path) -> Path:
    (job.parent / "weak.yaml").write_text("- Transpose\n")
    job.write_text(JOB.replace("chain: chains/train.yaml", f"chain: {SCHEDULE}\n  epochs: 5"))
    return job


def test_a_schedule_gives_the_first_recipe_and_those_that_come_later(scheduled_job: Path) -> None:
    """Each with the file it came from, which an edit of that file is matched with."""
    loaded = load_job(scheduled_job)
    folder = scheduled_job.parent
    assert loaded.train.digest == Recipe(chain=load_chain(folder / "chains" / "train.yaml")).digest
    assert (loaded.train_file, loaded.eval_file) == (str(folder / "chains/train.yaml"), "")
    assert [(later.from_epoch, later.file) for later in loaded.later] == [(2, str(folder / "weak.yaml")), (4, "")]
    assert [later.recipe.chain.nodes[0].name for later in loaded.later] == ["Transpose", "Blur"]


def test_another_chain_of_a_job_has_the_jobs_decode_settings_and_plugins(job: Path) -> None:
    (job.parent / "mine.py").write_text("")
    loaded = load_job(job, ["decode.color=gray", "plugins=[mine.py]"])
    again = loaded.recipe_of(load_chain(job.parent / "chains" / "train.yaml"))
    assert again.digest == loaded.train.digest
    assert again.decode.color == "gray"


def test_a_dumped_schedule_loads_to_the_same_one(scheduled_job: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A run folder's job.yaml, in another place than the job file."""
    first = load_job(scheduled_job)
    elsewhere = tmp_path_factory.mktemp("run") / "job.yaml"
    elsewhere.write_text(dump_job(first.config))
    again = load_job(elsewhere)
    assert again.config == first.config
    assert [(later.from_epoch, later.recipe.digest, later.file) for later in again.later] == [
        (later.from_epoch, later.recipe.digest, later.file) for later in first.later
    ]


@pytest.mark.parametrize(
    ("schedule", "path", "expected"),
    [
        ("[{from_epoch: 1, use: A}]", "train.chain[0].from_epoch", "0: the first entry"),
        ("[{from_epoch: 0, use: A}, {from_epoch: 0, use: A}]", "train.chain[1].from_epoch", "more than 0"),
        (
            "[{from_epoch: 0, use: A}, {from_epoch: 3, use: A}, {from_epoch: 2, use: A}]",
            "train.chain[2].from_epoch",
            "more than 3",
        ),
        ("[{from_epoch: 0, use: A}, {from_epoch: 5, use: A}]", "train.chain[1].from_epoch", "below 5"),
        ("[{from_epoch: 0, use: A}, {from_epoch: soon, use: A}]", "train.chain[1].from_epoch", "an epoch"),
        ("[{from_epoch: 0, use: A}, {from_epoch: -1, use: A}]", "train.chain[1].from_epoch", "an epoch"),
        ("[{from_epoch: 0, use: A}, {from_epoch: true, use: A}]", "train.chain[1].from_epoch", "an epoch"),
        ("[{from_epoch: 0, use: A}, {use: A}]", "train.chain[1].from_epoch", "the epoch from which on"),
        ("[{from_epoch: 0, use: A}, {from_epoch: 1}]", "train.chain[1].use", "the chain"),
        ("[{from_epoch: 0, use: A}, {from_epoch: 1, use: A, until: 3}]", "train.chain[1]", "{from_epoch"),
        ("[{from_epoch: 0, use: A}, HorizontalFlip]", "train.chain[1]", "{from_epoch"),
        ("[{from_epoch: 0, use: A}, {from_epoch: 1, use: nowhere.yaml}]", "train.chain[1].use", "a chain file's path"),
        ("[{from_epoch: 0, use: A}, {from_epoch: 1, use: 7}]", "train.chain[1].use", "a chain file's path"),
        ("[{from_epoch: 0, use: [{Blur: 1}]}]", "train.chain[0].use[0].Blur", "a map of parameters"),
    ],
)
def test_a_schedules_mistakes_are_located(scheduled_job: Path, schedule: str, path: str, expected: str) -> None:
    text = schedule.replace("A}", "chains/train.yaml}").replace("A,", "chains/train.yaml,")
    scheduled_job.write_text(scheduled_job.read_text().replace(SCHEDULE, text))
    problem = refused(scheduled_job)[path]
    assert (problem.file, problem.line) == (str(scheduled_job), 6)
    assert problem.expected.startswith(expected)


def test_only_the_train_stream_has_a_schedule(scheduled_job: Path) -> None:
    """What evaluations say would change its meaning in the middle of a run."""
    assert refused(scheduled_job, f"eval.chain={SCHEDULE}")["eval.chain"].got == "a schedule"


def test_a_chain_file_that_is_named_twice_is_refused_once(scheduled_job: Path) -> None:
    (scheduled_job.parent / "chains" / "train.yaml").write_text("- Blur: 1\n")
    override = "train.chain=[{from_epoch: 0, use: chains/train.yaml}, {from_epoch: 1, use: chains/train.yaml}]"
    with pytest.raises(ConfigError) as caught:
        load_job(scheduled_job, [override])
    assert [problem.path for problem in caught.value.problems] == ["chain[0].Blur"]


@pytest.mark.parametrize(
    ("overrides", "begins_with", "bounds"),
    [
        (["workers=3", "max_workers=5"], (3, False), (1, 5)),
        (["workers=0", "max_workers=5"], (0, False), (1, 5)),
        (["workers=auto", "max_workers=5"], (2, True), (1, 5)),
        (["workers=auto", "max_workers=1"], (1, True), (1, 1)),
        (["workers=auto", "min_workers=3", "max_workers=5"], (3, True), (3, 5)),
    ],
)
def test_a_job_begins_within_the_bounds_of_its_workers(
    job: Path, overrides: list[str], begins_with: tuple[int, bool], bounds: tuple[int, int]
) -> None:
    config = load_job(job, overrides).config
    assert (initial_workers(config), worker_bounds(config)) == (begins_with, bounds)


def test_without_a_bound_the_workers_may_be_twice_the_cores_or_as_many_as_were_asked_for(job: Path) -> None:
    assert worker_bounds(load_job(job, ["workers=1000"]).config) == (1, 1000)
    _, most = worker_bounds(load_job(job).config)
    assert most >= 2


@pytest.mark.parametrize("override", ["workers=-1", "workers=many", "workers=true", "workers=1.5", "workers=[1]"])
def test_a_wrong_number_of_workers_is_one_problem(job: Path, override: str) -> None:
    """Not one for each kind of value that would have been right."""
    with pytest.raises(ConfigError) as caught:
        load_job(job, [override])
    (problem,) = caught.value.problems
    assert (problem.path, problem.expected) == ("workers", "a number of workers from 0, or auto")


@pytest.mark.parametrize("others", [["workers=auto", "min_workers=4"], ["workers=4"]])
def test_bounds_that_leave_no_room_are_refused(job: Path, others: list[str]) -> None:
    assert "at least 4" in refused(job, *others, "max_workers=3")["max_workers"].expected


@pytest.mark.parametrize(
    ("bound", "others", "begin_with"),
    [("max_workers", ["workers=16", "max_workers=3"], "at most 3"), ("min_workers", ["min_workers=6"], "at least 6")],
)
def test_a_start_outside_its_bounds_is_refused_with_both_ways_out(
    job: Path, bound: str, others: list[str], begin_with: str
) -> None:
    """The bound stands in the job and the start may come from --workers: either may be what is wrong."""
    assert f"begin with {begin_with}: `workers` in the job, or --workers" in refused(job, *others)[bound].way_out


def test_overrides_are_yaml_and_the_last_one_wins(job: Path) -> None:
    loaded = load_job(job, ["optimizer.lr=1e-2", "optimizer.lr=2e-2", "train.chain=[Transpose]", "clip.kind=norm"])
    assert loaded.config.optimizer.lr == 0.02
    assert loaded.config.clip.kind == "norm"
    assert [node.name for node in loaded.train.chain.nodes] == ["Transpose"]


@pytest.mark.parametrize(
    ("override", "path", "hint"),
    [
        ("optimizer.rl=1", "optimizer.rl", "lr"),
        ("optimiser.lr=1", "optimiser", "did you mean optimizer?"),
        ("optimizer.lr=fast", "optimizer.lr", ""),
        ("optimizer.lr.x=1", "optimizer.lr.x", ""),
        ("train.chain=nowhere.yaml", "train.chain", ""),
        ("seed", "", ""),
        ("seed=", "", ""),
        ("seed=[1", "", ""),
    ],
)
def test_a_wrong_override_is_named(job: Path, override: str, path: str, hint: str) -> None:
    problem = refused(job, override)[path]
    assert problem.file == f"--set {override}"
    assert problem.line == 0
    assert hint in problem.way_out


def test_problems_of_a_job_and_its_chain_file_come_together(job: Path) -> None:
    (job.parent / "chains" / "train.yaml").write_text("- A\n- B: 1\n- {C: null, p: 0.5}\n")
    job.write_text(JOB.replace("lr:", "learning_rate:").replace("path: data/train", "pth: data/train"))
    found = refused(job)
    assert set(found) == {
        "chain[1].B",
        "chain[2]",
        "optimizer.learning_rate",
        "sources.photos.path",
        "sources.photos.pth",
    }
    assert found["chain[2]"].way_out == "indent p below C"
    assert (found["sources.photos.pth"].line, found["sources.photos.pth"].way_out) == (2, "did you mean path?")


@pytest.mark.parametrize(
    ("sources", "needs_eval"),
    [
        ("photos: {kind: digits}", False),
        ("photos: {kind: digits, split: {part: train}}", False),
        ("photos: {kind: digits, split: {part: held_out}}", True),
        ("photos: {kind: digits}\n  other: {kind: digits}", True),
    ],
)
def test_eval_is_required_where_samples_are_held_out(tmp_path: Path, sources: str, needs_eval: bool) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(f"sources:\n  {sources}\ntrain: {{source: photos, chain: []}}\n")
    if needs_eval:
        assert "eval" in refused(job)
    else:
        assert load_job(job).eval is None


def test_a_file_is_a_study_a_job_or_a_chain_or_none_of_them(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    kinds = {"train: 1": "job", "- A": "chain", "transform: {}": "chain", "job: job.yaml\naxess: {}": "study"}
    for text, kind in kinds.items():
        file.write_text(text)
        assert kind_of_file(file) == kind
    file.write_text("transforms: []")
    with pytest.raises(ConfigError, match="did you mean transform"):
        kind_of_file(file)


def test_a_saved_chain_and_its_list_have_equal_nodes(tmp_path: Path) -> None:
    (tmp_path / "saved.yaml").write_text(
        "__version__: 2.0.8\ntransform:\n  __class_fullname__: Compose\n  p: 1.0\n  additional_targets: {}\n"
        "  bbox_params: null\n  keypoint_params: null\n  is_check_shapes: true\n  transforms:\n"
        "  - {__class_fullname__: albumentations.core.HorizontalFlip, p: 0.5}\n"
        "  - __class_fullname__: OneOf\n    p: 0.3\n    transforms:\n    - {__class_fullname__: Blur, p: 1.0}\n"
    )
    (tmp_path / "list.yaml").write_text("- HorizontalFlip: {p: 0.5}\n- OneOf: {transforms: [Blur: {p: 1.0}], p: 0.3}\n")
    saved, listed = load_chain(tmp_path / "saved.yaml"), load_chain(tmp_path / "list.yaml")
    assert [node.normalised() for node in saved.nodes] == [node.normalised() for node in listed.nodes]
    assert Recipe(chain=saved).digest == Recipe(chain=listed).digest


# --- digests: over any chain that YAML can hold ---------------------------------------------------------------

texts = st.text(string.ascii_letters + string.digits + " .-_:#é漢'\"[]{}~<", max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars, lambda below: st.lists(below, max_size=3) | st.dictionaries(texts, below, max_size=3), max_leaves=6
)
params = st.dictionaries(texts.filter(lambda key: key != "transforms"), values, max_size=3)
names = st.sampled_from(["Blur", "OneOf", "null", "1e-3", "A b", "yes"])
leaves = st.builds(lambda name, given: ChainNode(name=name, params=given), names, params)
nodes = st.recursive(
    leaves,
    lambda below: st.builds(
        lambda name, given, children: ChainNode(name=name, params=given, children=tuple(children), is_composition=True),
        names,
        params,
        st.lists(below, max_size=3),
    ),
    max_leaves=5,
)


def shuffled(value: Any, order: random.Random) -> Any:
    """The same value with the keys of every map in another order."""
    if isinstance(value, dict):
        keys = list(value)
        order.shuffle(keys)
        return {key: shuffled(value[key], order) for key in keys}
    return [shuffled(entry, order) for entry in value] if isinstance(value, list) else value


def written(chain: tuple[ChainNode, ...], order: random.Random) -> str:
    """The chain in another dress: flow style, other key order, comments, blank lines."""

    def item(node: ChainNode) -> Any:
        body = {**node.params, "transforms": [item(child) for child in node.children]}
        return {node.name: shuffled(body if node.is_composition else node.params, order)}

    lines = [
        f"# {index}\n\n-   {json.dumps(item(node), ensure_ascii=False)}  # end" for index, node in enumerate(chain)
    ]
    return "\n".join(lines) if chain else "[]  # empty"


def digest_of(text: str, folder: Path) -> str:
    (folder / "chain.yaml").write_text(text, encoding="utf-8")
    return Recipe(chain=load_chain(folder / "chain.yaml")).digest


@settings(max_examples=cases(60))
@given(chain=st.lists(nodes, max_size=3).map(tuple), seed=st.integers(0, 9))
def test_comments_key_order_and_formatting_do_not_change_a_digest(
    tmp_path_factory: pytest.TempPathFactory, chain: tuple[ChainNode, ...], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("chains")
    first = digest_of(written(chain, random.Random(seed)), folder)
    again = digest_of(written(chain, random.Random(seed + 1)), folder)
    dumped = digest_of(dump_chain(load_chain(folder / "chain.yaml")), folder)
    assert first == again == dumped


@settings(max_examples=cases(60))
@given(node=leaves, key=texts, before=values, after=values)
def test_any_parameter_changes_a_digest(node: ChainNode, key: str, before: Any, after: Any) -> None:
    def digest(value: Any) -> str:

        changed = ChainNode(name=node.name, params={**node.params, key: value})
        return Recipe(chain=Chain(file="f", nodes=(changed,))).digest

    assert (digest(before) == digest(after)) == (
        json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True)
    )


def test_decode_and_plugins_are_part_of_the_digest(job: Path) -> None:
    recipe = load_job(job).train
    others = [
        Recipe(chain=recipe.chain, decode=Decode(color="gray")),
        Recipe(chain=recipe.chain, decode=Decode(depth=16)),
        Recipe(chain=recipe.chain, decode=Decode(max_pixels=5)),
        Recipe(chain=recipe.chain, plugins={"mine": "00"}),
        recipe,
    ]
    assert len({other.digest for other in others}) == len(others)
