"""Files made wrong by mutating good ones: each is refused with file and line, whatever was done to it.

The mutants are made by rule, not by hand: every key renamed, every value given a wrong type, every number made
absurd, every required key dropped; and the text broken as editors and copying break it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from headrace.commands.check import _check_one
from pipeline.errors import ConfigError

JOB: dict[str, Any] = {
    "name": "good",
    "seed": 3,
    "sources": {
        "photos": {"kind": "folder", "path": "data/train", "content": False},
        "tables": {"kind": "manifest", "path": "a.csv", "path_column": "file", "label_column": "class"},
        "images": {"kind": "arrays", "path": "x.npy", "labels": "y.npy", "classes": ["a", "b"]},
        "digits": {"kind": "digits", "split": {"part": "held_out", "held_out": 0.2, "salt": "s"}},
        "mine": {"kind": "plugin", "factory": "mine.py:make"},
    },
    "train": {
        "source": "photos",
        "chain": [{"RandomCrop": {"height": 8, "width": 8}}, "HorizontalFlip", "Normalize", "ToTensorV2"],
        "batch_size": 4,
        "epochs": 2,
        "shuffle": True,
        "last_batch": "drop",
    },
    "eval": {"source": "digits", "chain": ["Normalize", "ToTensorV2"], "batch_size": 8, "every_steps": 10},
    "decode": {"color": "rgb", "depth": 8, "max_pixels": 1000000},
    "workers": 2,
    "slice_size": 16,
    "window_batches": 8,
    "on_bad_sample": "fail",
    "max_bad_fraction": 0.01,
    "hang_s": 60.0,
    "model": {"kind": "cnn", "width": 8, "depth": 2, "activation": "relu", "init": "kaiming_normal"},
    "optimizer": {"kind": "sgd", "lr": 0.1, "weight_decay": 0.0, "momentum": 0.9, "betas": [0.9, 0.99]},
    "schedule": {"kind": "cosine", "warmup_steps": 5, "min_lr": 0.0},
    "clip": {"kind": "norm", "threshold": 1.0},
    "device": "cpu",
    "deterministic": True,
}
CHAIN: list[Any] = [
    {"RandomResizedCrop": {"size": [16, 16], "scale": [0.3, 1.0]}},
    {"OneOf": {"p": 0.5, "transforms": [{"GaussianBlur": {"sigma_limit": [0.5, 2.0]}}, {"MotionBlur": {"p": 1.0}}]}},
    {
        "SomeOf": {
            "n": 1,
            "replace": False,
            "transforms": [{"Affine": {"rotate": [-9, 9]}}, {"HorizontalFlip": {"p": 0.5}}],
        }
    },
    {"CoarseDropout": {"num_holes_range": [1, 2], "fill": 0, "p": 0.2}},
    {"Normalize": {"mean": [0.5, 0.5, 0.5], "std": 0.25, "max_pixel_value": 255.0}},
    {"ToTensorV2": {"p": 1.0}},
]
SAVED: dict[str, Any] = {
    "__version__": "2.0.8",
    "transform": {
        "__class_fullname__": "Compose",
        "p": 1.0,
        "bbox_params": None,
        "is_check_shapes": True,
        "transforms": [
            {"__class_fullname__": "HorizontalFlip", "p": 0.5},
            {
                "__class_fullname__": "OneOf",
                "p": 0.3,
                "transforms": [{"__class_fullname__": "GaussNoise", "per_channel": True, "p": 1.0}],
            },
        ],
    },
}
GOOD: dict[str, Any] = {"job": JOB, "chain": CHAIN, "saved": SAVED}
WRONG_TYPE = {"unexpected": {"deeper": [1]}}
REQUIRED = {"sources", "train", "source", "chain", "path", "factory", "kind", "part", "height", "width", "size"}
REQUIRED |= {"transform", "__class_fullname__"}
HAS_DEFAULT = {("model", "kind"), ("model", "width"), ("optimizer", "kind"), ("schedule", "kind"), ("clip", "kind")}
FREE_NAMES = {("sources", "tables"), ("sources", "images"), ("sources", "mine")}
"""Names that nothing refers to: any other is as good."""

Mutant = tuple[str, bytes]


def as_yaml(tree: Any) -> bytes:
    # Each worker of pytest writes all the mutants to know their names: in C where PyYAML has it.
    text: str = yaml.dump(tree, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)
    return text.encode()


def places(tree: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each entry of each map and list."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield (*way, key)
        yield from places(value, (*way, key))


def at(tree: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        tree = tree[key]
    return tree


def changed(tree: Any, way: tuple[Any, ...], change: Callable[[Any, Any], None]) -> bytes:
    mutant = copy.deepcopy(tree)
    change(at(mutant, way[:-1]), way[-1])
    return as_yaml(mutant)


def rename(holder: Any, key: Any) -> None:
    holder[f"{key}x"] = holder.pop(key)


def put(value: Any) -> Callable[[Any, Any], None]:
    def change(holder: Any, key: Any) -> None:
        holder[key] = copy.deepcopy(value)

    return change


def drop(holder: Any, key: Any) -> None:
    del holder[key]


def structural_mutants(name: str, tree: Any) -> Iterator[Mutant]:
    for way in places(tree):
        label = f"{name}:{'.'.join(map(str, way))}"
        value = at(tree, way)
        if isinstance(way[-1], str) and way not in FREE_NAMES:
            yield f"{label} renamed", changed(tree, way, rename)
        yield f"{label} of a wrong type", changed(tree, way, put(WRONG_TYPE))
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{label} absurd", changed(tree, way, put(-1e300))
            yield f"{label} quoted", changed(tree, way, put(str(value)))
        if isinstance(value, bool):
            yield f"{label} a number", changed(tree, way, put(7))
        if way[-1] in REQUIRED and way[-2:] not in HAS_DEFAULT:
            yield f"{label} dropped", changed(tree, way, drop)


def textual_mutants(name: str, tree: Any) -> Iterator[Mutant]:
    good = as_yaml(tree)
    lines = good.split(b"\n")
    broken: dict[str, bytes] = {
        "empty": b"",
        "only a comment": b"# nothing\n",
        "a scalar": b"just text\n",
        "two documents": good + b"---\n" + good,
        "an unclosed bracket": good + b"tail: [1, 2\n",
        "an unclosed quote": good + b'tail: "text\n',
        "a stray brace": b"}" + good,
        "a NUL": good.replace(b": ", b": \x00", 1),
        "Latin-1": good + b"# caf\xe9\n",
        "a control character": good + b"# \x07\n",
        "UTF-16": good.decode().encode("utf-16"),
        "a tab for indentation": b"\n".join([*lines[:1], b"\t" + lines[1], *lines[2:]]),
        "a Python tag": good.replace(b": ", b": !!python/object/apply:os.system ", 1),
        "a plain tag": good.replace(b": ", b": !mine ", 1),
        "an unknown alias": good.replace(b": ", b": *nowhere ", 1),
        "an unknown escape": good + b'tail: "\\q"\n',
        "an infinite number": good.replace(b"p: 0.5", b"p: .inf").replace(b"seed: 3", b"seed: .inf"),
        "no number": good.replace(b"p: 0.5", b"p: .nan").replace(b"lr: 0.1", b"lr: .nan"),
        "deep nesting": good + b"tail: " + b"[" * 100 + b"]" * 100,
        "very deep nesting": b"[" * 20_000,
        "too long": good + b"#" * 300_000,
        "too many values": b"[" + b"1," * 11_000 + b"1]",
        "a self-containing list": b"&a [*a]",
        "exploding aliases": b"\n".join(
            [b"a0: &a0 [1,1,1,1,1,1,1,1,1]"]
            + [b"a%d: &a%d [%s]" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12)]
        ),
        "cut in the middle of a word": good[: good.rindex(b":")],
    }
    for label, text in broken.items():
        yield f"{name}: {label}", text
    if isinstance(tree, dict):
        yield f"{name}: a merge key", b"<<: {}\n" + good
        yield f"{name}: a key that is a number", good + b"7: x\n"
        yield f"{name}: a key that is a list", good + b"? [a]\n: x\n"
    for index, line in enumerate(lines):
        key = line.strip().partition(b":")[0]
        if line.endswith((b": true", b": false", b": 1.0", b": 2")) and index % 2 == 0:
            yield f"{name}: {key.decode()} twice (line {index + 1})", b"\n".join([*lines[: index + 1], *lines[index:]])


SOURCE = """
class Nothing:
    fingerprint, classes = "0" * 64, ("a", "b")
    def __len__(self): return 1
    def read(self, index): raise OSError("not read by a check")
    def describe(self, index): return "nothing"

def make():
    return Nothing()
"""

MUTANTS: list[Mutant] = [
    mutant
    for name, tree in GOOD.items()
    for make in (structural_mutants, textual_mutants)
    for mutant in make(name, tree)
]


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the files refer to; a mutant takes the place of the one before it."""
    tmp_path = tmp_path_factory.mktemp("mutants")
    (tmp_path / "mine.py").write_text(SOURCE)
    for digit in range(10):  # the classes of `digits`; a check indexes files and decodes none
        (tmp_path / "data" / "train" / str(digit)).mkdir(parents=True)
        (tmp_path / "data" / "train" / str(digit) / "0.jpg").write_bytes(b"not decoded")
    (tmp_path / "a.csv").write_text("file,class\ndata/train/0/0.jpg,a\n")
    np.save(tmp_path / "x.npy", np.zeros((2, 4, 4, 3), np.uint8))
    np.save(tmp_path / "y.npy", np.zeros(2, np.int64))
    return tmp_path


@pytest.mark.parametrize("name", list(GOOD))
def test_the_files_are_good_before_they_are_mutated(folder: Path, name: str) -> None:
    (folder / "file.yaml").write_bytes(as_yaml(GOOD[name]))
    assert "recipe" in _check_one(folder / "file.yaml", [])


def test_there_are_at_least_200_different_mutants_and_none_is_a_good_file() -> None:
    assert len({text for _, text in MUTANTS}) >= 200
    assert not {text for _, text in MUTANTS} & {as_yaml(tree) for tree in GOOD.values()}


@pytest.mark.parametrize(("label", "text"), MUTANTS, ids=[label for label, _ in MUTANTS])
def test_a_mutant_is_refused_with_file_and_line(folder: Path, label: str, text: bytes) -> None:
    file = folder / "file.yaml"
    file.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        _check_one(file, [])
    num_lines = text.count(b"\n") + 1
    for problem in caught.value.problems:
        assert problem.file == str(file)
        assert 1 <= problem.line <= num_lines, problem
        assert problem.expected
        assert problem.got
