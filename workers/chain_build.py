"""A chain's nodes become transforms, built strictly from each class's own signature.

In:  ChainNodes, the known classes.
Out: transforms (albumentations objects), and every problem with its line and path.
Never uses from_dict (it turns a missing `p` into 0.5), never sets a seed, never applies a transform.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import Problem
from pipeline.located import describe, nearest
from pipeline.recipe import ChainNode
from workers.chain_library import COMPOSITIONS, FORBIDDEN, GONE_SINCE_1, TO_TENSOR, composition
from workers.chain_limits import MAX_CHAIN_DEPTH, MAX_CHAIN_NODES, absurd, new_spelling

_LIST_PARAMETERS = {("LongestMaxSize", "max_size"), ("SmallestMaxSize", "max_size")}
"""Where the class wants a list; elsewhere a YAML list becomes a tuple (and Posterize takes a list of tuples)."""

_ADVICE = "is a specialized version|is a special case|is an alias|is very slow"
"""Warnings of albumentations that recommend another transform; every other one means a changed parameter."""

_COMPOSITION_DEFAULTS: dict[str, dict[str, Any]] = {
    "Compose": {"p": 1.0},
    "OneOf": {"p": 0.5},
    "OneOrOther": {"p": 0.5},
    "RandomOrder": {"n": 1, "replace": False, "p": 1.0},
    "SelectiveChannelTransform": {"channels": (), "p": 1.0},
    "Sequential": {"p": 0.5},
    "SomeOf": {"n": 1, "replace": False, "p": 1.0},
}
"""The parameters we let a composition have, with its class's defaults."""


class ChainBuilder:
    """Builds nodes one by one; what is wrong is in `problems`, and such a node is built as None."""

    def __init__(self, file: str, known: Mapping[str, Any], num_channels: int) -> None:
        self.problems: list[Problem] = []
        self.paths: dict[int, str] = {}
        """id of each built object -> its path in the chain, to name it when it fails."""
        self._file = file
        self._known = known
        self._num_channels = num_channels
        self._num_nodes = 0

    def build_all(self, nodes: Sequence[ChainNode], path: str, line: int, depth: int = 1) -> list[Any]:
        """The transforms of `nodes`; shorter than `nodes` if any was refused."""
        if depth > MAX_CHAIN_DEPTH:
            self.refuse(line, path, f"at most {MAX_CHAIN_DEPTH} levels of nesting", "more")
            return []
        built = [self._build(node, f"{path}[{index}].{node.name}", depth) for index, node in enumerate(nodes)]
        return [transform for transform in built if transform is not None]

    def refuse(self, line: int, path: str, expected: str, got: str, way_out: str = "") -> None:
        """Notes a problem."""
        self.problems.append(
            Problem(file=self._file, line=line, path=path, expected=expected, got=got, way_out=way_out)
        )

    def _build(self, node: ChainNode, path: str, depth: int) -> Any:
        self._num_nodes += 1
        if self._num_nodes > MAX_CHAIN_NODES:
            if self._num_nodes == MAX_CHAIN_NODES + 1:
                self.refuse(node.line, path, f"at most {MAX_CHAIN_NODES} transforms in a chain", "more")
            return None
        if node.name in COMPOSITIONS:
            built = self._build_composition(node, path, depth)
        elif node.name in self._known:
            built = self._build_transform(node, self._known[node.name], path)
        else:
            self._refuse_name(node, path)
            built = None
        if built is not None:
            self.paths[id(built)] = path
        return built

    def _refuse_name(self, node: ChainNode, path: str) -> None:
        if node.name == TO_TENSOR:
            self.refuse(node.line, path, f"{TO_TENSOR} as the chain's last entry only", "it stands elsewhere")
        elif node.name in FORBIDDEN:
            self.refuse(node.line, path, "a transform of one image", f"{node.name}: {FORBIDDEN[node.name]}")
        elif node.name in GONE_SINCE_1:
            way_out = f"write {GONE_SINCE_1[node.name]}"
            self.refuse(node.line, path, "a transform of albumentations 2.x", f"{node.name}, of 1.x", way_out)
        else:
            names = [*self._known, *COMPOSITIONS, TO_TENSOR]
            expected = "a transform of albumentations 2.0.8 or of a plug-in"
            self.refuse(node.line, path, expected, repr(node.name), nearest(node.name, names))

    def _build_transform(self, node: ChainNode, transform_class: Any, path: str) -> Any:
        if node.is_composition:
            expected = f"parameters of {node.name}, which holds no transforms"
            self.refuse(node.line, path, expected, "a list of transforms", "use OneOf, SomeOf or Sequential around it")
            return None
        num_before = len(self.problems)
        signature = inspect.signature(transform_class.__init__).parameters
        accepted = {name: parameter for name, parameter in signature.items() if name != "self"}
        self._check_names(node, path, accepted)
        for parameter, expected, got in absurd(node.name, node.params):
            self.refuse(_line(node, parameter), f"{path}.{parameter}", expected, got)
        if len(self.problems) > num_before:
            return None
        arguments = {name: _as_argument(node.name, name, value) for name, value in node.params.items()}
        defaults = {
            name: parameter.default
            for name, parameter in accepted.items()
            if parameter.default is not inspect.Parameter.empty
        }
        with warnings.catch_warnings():
            # albumentations only warns of arguments that it then ignores or changes.
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=f".*({_ADVICE})")
            if not self._is_valid(node, transform_class, defaults, arguments, path):
                return None
            return self._construct(node, transform_class, arguments, path)

    def _check_names(self, node: ChainNode, path: str, accepted: Mapping[str, inspect.Parameter]) -> None:
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values()):
            for name in node.params:
                if name not in accepted:
                    self._refuse_parameter(node, name, path, accepted)
        for name, parameter in accepted.items():
            is_variadic = parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
            if parameter.default is inspect.Parameter.empty and not is_variadic and name not in node.params:
                self.refuse(node.line, f"{path}.{name}", f"`{name}`, which has no default", "nothing")

    def _refuse_parameter(self, node: ChainNode, name: str, path: str, accepted: Mapping[str, Any]) -> None:
        replacement = new_spelling(node.name, name, accepted)
        if name == "always_apply":
            replacement = "p: 1.0"
        if replacement:
            expected, got = "a parameter of albumentations 2.x", f"{name!r}, of 1.x"
            way_out = f"write {replacement}"
        else:
            expected, got = f"a parameter of {node.name}", repr(name)
            way_out = nearest(name, accepted)
        self.refuse(_line(node, name), f"{path}.{name}", expected, got, way_out)

    def _is_valid(
        self, node: ChainNode, transform_class: Any, defaults: dict[str, Any], written: dict[str, Any], path: str
    ) -> bool:
        """Checks types strictly (no text for a number, no number for a boolean) and the class's own ranges."""
        arguments = {**defaults, **written}
        try:
            transform_class.InitSchema.model_validate({**arguments, "strict": True}, strict=True)
        except ValidationError as error:
            messages: dict[str, list[str]] = {}
            for details in error.errors(include_url=False):
                parameter = str(details["loc"][0]) if details["loc"] else ""
                messages.setdefault(parameter, []).append(_expected(details, defaults.get(parameter)))
            for parameter, found in messages.items():
                here = f"{path}.{parameter}" if parameter else path
                got = describe(arguments[parameter] if parameter else dict(node.params))
                way_out = _interpolation_hint(parameter, arguments.get(parameter))
                self.refuse(_line(node, parameter), here, " or ".join(dict.fromkeys(found)), got, way_out)
            return False
        except Exception as error:  # a validator of the class itself failed on a value it did not foresee
            self._refuse_failure(node, path, error)
            return False
        return True

    def _construct(self, node: ChainNode, transform_class: Any, arguments: dict[str, Any], path: str) -> Any:
        try:
            return transform_class(**arguments)
        except Exception as error:
            self._refuse_failure(node, path, error)
            return None

    def _refuse_failure(self, node: ChainNode, path: str, error: Exception) -> None:
        text = " ".join(str(error).split())
        expected = f"parameters that {node.name} accepts"
        self.refuse(node.line, path, expected, f"{describe(node.params)}: {type(error).__name__}: {text}")

    def _build_composition(self, node: ChainNode, path: str, depth: int) -> Any:
        num_before = len(self.problems)
        arguments = {**_COMPOSITION_DEFAULTS[node.name], **node.params}
        for name in node.params:
            if name not in _COMPOSITION_DEFAULTS[node.name]:
                self._refuse_parameter(node, name, path, {**_COMPOSITION_DEFAULTS[node.name], "transforms": ()})
        if not node.children:
            got = "an empty list" if node.is_composition else "no `transforms`"
            way_out = f"write {node.name}: {{transforms: [...]}}"
            self.refuse(node.line, path, "at least one transform inside", got, way_out)
        self._check_composition(node, arguments, path)
        children = self.build_all(node.children, path, node.line, depth + 1)
        if len(self.problems) > num_before:
            return None
        if node.name == "OneOf" and not any(child.p for child in children):
            got = "p: 0 for all of them"
            self.refuse(node.line, path, "a choice with p above 0 (p is its weight here)", got)
            return None
        return self._construct(node, composition(node.name), {**arguments, "transforms": children}, path)

    def _check_composition(self, node: ChainNode, arguments: Mapping[str, Any], path: str) -> None:
        """What the compositions themselves don't check: p, n, replace, channels and how many there are."""
        expected: dict[str, str] = {}
        probability = arguments["p"]
        if not _is_number(probability) or not 0 <= probability <= 1:
            expected["p"] = "a number from 0 to 1"
        if "n" in arguments:
            most = MAX_CHAIN_NODES if arguments["replace"] is True else len(node.children)
            if type(arguments["n"]) is not int or not 1 <= arguments["n"] <= most:
                expected["n"] = f"an integer from 1 to {most}"
            if not isinstance(arguments["replace"], bool):
                expected["replace"] = "true or false"
        if "channels" in arguments:
            channels = arguments["channels"]
            numbers = list(channels) if isinstance(channels, list | tuple) else []
            is_each_known = all(type(number) is int and 0 <= number < self._num_channels for number in numbers)
            if not numbers or not is_each_known or len(set(numbers)) != len(numbers):
                expected["channels"] = f"a list of different channels from 0 to {self._num_channels - 1}"
        if node.name == "OneOrOther" and len(node.children) != 2:
            self.refuse(node.line, path, "exactly two transforms", f"{len(node.children)}")
        for name, text in expected.items():
            got = describe(node.params[name]) if name in node.params else "nothing"
            self.refuse(_line(node, name), f"{path}.{name}", text, got)


def _expected(details: ErrorDetails, default: Any) -> str:
    """What pydantic expected of a parameter; of a tuple, which YAML knows as a list, an example of it."""
    location, kind = details["loc"], details["type"]
    if kind == "tuple_type" or (len(location) > 1 and kind in ("missing", "too_long")):
        if isinstance(default, tuple) and default:
            return f"a {'pair' if len(default) == 2 else 'list'} such as {describe(default)}"
        return "a pair such as [height, width]" if location[0] == "size" else "a list of values: [..., ...]"
    return details["msg"].removeprefix("Value error, ").removeprefix("Input should be ")


def _line(node: ChainNode, parameter: str) -> int:
    return node.param_lines.get(parameter, node.line)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_argument(transform: str, parameter: str, value: Any) -> Any:
    is_listed = isinstance(value, list) and (transform, parameter) in _LIST_PARAMETERS
    has_ranges = isinstance(value, list) and any(isinstance(entry, list) for entry in value)
    if is_listed or (transform == "Posterize" and has_ranges):
        return [_with_tuples(entry) for entry in value]
    return _with_tuples(value)


def _with_tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_with_tuples(entry) for entry in value)
    if isinstance(value, dict):
        return {key: _with_tuples(entry) for key, entry in value.items()}
    return value


def _interpolation_hint(parameter: str, value: Any) -> str:
    if not isinstance(value, str):
        return ""
    if parameter.endswith("interpolation"):
        return "OpenCV's number: 0 nearest, 1 linear, 2 cubic, 3 area, 4 Lanczos"
    if parameter == "border_mode":
        return "OpenCV's number: 0 constant, 1 replicate, 2 reflect, 3 wrap, 4 reflect_101"
    return ""
