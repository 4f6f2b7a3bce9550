"""What a user may have meant: other libraries' words for ours, and keys that have their place elsewhere in the job.

In:  a word or a key that the job file's model does not have at this place.
Out: `did you mean X?`, or nothing.
Pure. Words that only look alike are for `pipeline.located.nearest`, which is asked last.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel

from pipeline.located import nearest

OTHER_WORDS: dict[str, dict[str, str]] = {
    "device": {"gpu": "cuda", "cuda:0": "cuda"},
    "precision": {
        **dict.fromkeys(["float32", "32", "single", "full"], "fp32"),
        **dict.fromkeys(["float16", "16", "half"], "fp16"),
        "bfloat16": "bf16",
    },
    "decode.color": dict.fromkeys(["grey", "grayscale", "greyscale", "l"], "gray") | {"color": "rgb", "colour": "rgb"},
    "model.activation.name": {
        "swish": "silu",
        "logistic": "sigmoid",
        "lrelu": "leaky_relu",
        "leakyrelu": "leaky_relu",
        "hard_swish": "hardswish",
        "h_swish": "hardswish",
    },
    "model.init.law": {
        **dict.fromkeys(["he", "he_normal", "kaiming", "msra"], "kaiming_normal"),
        "he_uniform": "kaiming_uniform",
        **dict.fromkeys(["glorot", "glorot_uniform", "xavier"], "xavier_uniform"),
        "glorot_normal": "xavier_normal",
        "lecun": "lecun_normal",
        "trunc_normal": "truncated_normal",
    },
    "schedule.kind": dict.fromkeys(["cosineannealing", "cosine_annealing", "cosineannealinglr"], "cosine")
    | {"none": "constant", "steplr": "step", "reducelronplateau": "plateau"},
}
"""Field of a job -> word of torch, Keras or a paper -> ours."""

OTHER_KEYS: dict[str, str] = {
    "learning_rate": "lr",
    "num_epochs": "epochs",
    "num_workers": "workers",
    "n_workers": "workers",
    "transforms": "chain",
    "initialization": "init",
    "scheduler": "schedule",
    "wd": "weight_decay",
}
"""Key of torch, Keras or Lightning -> ours."""

_MAPPING_TYPES = ("model_type", "model_attributes_type", "dict_type")
"""Kinds of pydantic's errors that speak of `an object`, as JSON does."""

_MAX_PLACES = 3
"""A key with more homes than these says too little to name them all. Chosen."""


def meant_word(path: str, word: str, choices: Iterable[str]) -> str:
    """The way out for a word that is none of a field's choices."""
    ours = OTHER_WORDS.get(path, {}).get(word.lower().replace("-", "_"))
    return f"did you mean {ours}?" if ours else nearest(word, choices)


def meant_key(key: str, known_here: Iterable[str], root: type[BaseModel]) -> str:
    """The way out for a key that a section doesn't have: its own one of another name, else where the job has it."""
    here, ours = list(known_here), OTHER_KEYS.get(key.lower(), key.lower())
    if ours in here:
        return f"did you mean {ours}?"
    places = [path for path in _paths(root) if path.rpartition(".")[2] == ours]
    if 0 < len(places) <= _MAX_PLACES:
        return f"did you mean {' or '.join(places)}?"
    return nearest(key, here)


def in_yaml_words(kind: str, message: str) -> str:
    """What pydantic expected, said of YAML and not of JSON; `kind`: the type of its error."""
    return "a mapping: `key: value`, each on a line below it" if kind in _MAPPING_TYPES else message


def models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections an annotation may stand for, through Annotated, unions and None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Annotated, typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            yield from models_of(argument)


def _paths(section: type[BaseModel], above: str = "") -> Iterator[str]:
    """Path of every field, such as `optimizer.lr`; of what stands in a dict or a list, only the whole."""
    for name, field in section.model_fields.items():
        yield f"{above}{name}"
        for below in models_of(field.annotation):
            yield from _paths(below, f"{above}{name}.")
