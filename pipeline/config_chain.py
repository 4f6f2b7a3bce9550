"""A chain as users write it, or as albumentations saves it, becomes a tree of ChainNodes.

In:  Located values.
Out: `Chain` (its transforms are not looked up here), and back: the plain item of a node.
Never reads a file, looks no transform up; it knows some names only for what `albumentations.save` does to them.

    - HorizontalFlip                                # the class's own defaults
    - RandomCrop: {height: 64, width: 64}
    - OneOf: {p: 0.3, transforms: [Blur, ...]}      # a composition
    - OneOf: [Blur, ...]                            # the same with default p
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.located import Located, ProblemList, describe
from pipeline.recipe import Chain, ChainNode

SAVED_NAME = "__class_fullname__"
_SAVED_COMPOSE_DEFAULTS: dict[str, Any] = {"bbox_params": None, "keypoint_params": None, "additional_targets": {}}
_MASKING = ("fill", "fill_mask", "mask_x_length", "mask_y_length", "num_masks_x", "num_masks_y")
_SAVED_TOO_MUCH: dict[str, tuple[str, ...]] = {
    "FrequencyMasking": _MASKING,
    "TimeMasking": _MASKING,
    "PadIfNeeded": ("padding",),
    "RGBShift": ("approximation", "noise_params", "noise_type", "spatial_mode"),
    "SafeRotate": (
        *("balanced_scale", "fit_output", "keep_ratio", "rotate", "scale", "shear"),
        *("translate_percent", "translate_px"),
    ),
}
"""What albumentations 2.0.8 saves of a parent class though the class itself does not take it."""
_ITEM_FORMS = "a transform: `Name`, `Name: {parameter: value}` or `Name: [transforms]`"


def read_chain(root: Located, path: str, problems: ProblemList, *, may_be_saved: bool = False) -> Chain | None:
    """The chain below `root`; None, with problems noted, if any of its nodes can't be read."""
    num_before = len(problems.problems)
    if isinstance(root.value, tuple):
        nodes = [_read_item(item, f"{path}[{index}]", problems) for index, item in enumerate(root.value)]
    elif may_be_saved and "transform" in root.items:
        nodes = _read_saved_file(root, path, problems)
    else:
        expected = "a list of transforms" + (
            ", or a map with `transform` (albumentations.save)" if may_be_saved else ""
        )
        problems.add(root, path, expected=expected, got=describe(root.plain()))
        return None
    if len(problems.problems) > num_before:
        return None
    return Chain(file=root.file, line=root.line, path=path, nodes=tuple(node for node in nodes if node is not None))


def as_item(node: ChainNode) -> Any:
    """The plain YAML value that `read_chain` reads back to an equal node, lines aside."""
    if not node.is_composition:
        return {node.name: dict(node.params)} if node.params else node.name
    return {node.name: {**node.params, "transforms": [as_item(child) for child in node.children]}}


def _read_item(item: Located, path: str, problems: ProblemList) -> ChainNode | None:
    if isinstance(item.value, str) and item.value:
        return ChainNode(name=item.value, line=item.line)
    if SAVED_NAME in item.items:
        way_out = "a saved chain is a file of its own that begins with `transform:`"
        problems.add(item, path, expected=_ITEM_FORMS, got="a saved transform", way_out=way_out)
        return None
    if len(item.items) != 1:
        first, *others = [*item.items, ""]
        way_out = f"indent {', '.join(filter(None, others))} below {first}" if others[:-1] else ""
        problems.add(item, path, expected=_ITEM_FORMS, got=describe(item.plain()), way_out=way_out)
        return None
    ((name, body),) = item.items.items()
    here = f"{path}.{name}"
    if isinstance(body.value, tuple):
        return ChainNode(
            name=name, line=body.key_line, is_composition=True, children=_read_children(body, here, problems)
        )
    if body.value is None or isinstance(body.value, dict):
        return _read_body(name, body, here, problems, saved=False)
    problems.add(body, here, expected="a map of parameters, or a list of transforms", got=describe(body.plain()))
    return None


def _read_body(name: str, body: Located, path: str, problems: ProblemList, *, saved: bool) -> ChainNode:
    params = {key: entry for key, entry in body.items.items() if key not in ("transforms", SAVED_NAME)}
    children: tuple[ChainNode, ...] = ()
    transforms = body.items.get("transforms")
    if transforms is not None:
        children = _read_children(transforms, path, problems, saved=saved)
    return ChainNode(
        name=name,
        params={key: entry.plain() for key, entry in params.items()},
        param_lines={key: entry.key_line for key, entry in params.items()},
        children=children,
        is_composition=transforms is not None,
        line=body.key_line or body.line,
    )


def _read_children(
    transforms: Located, path: str, problems: ProblemList, *, saved: bool = False
) -> tuple[ChainNode, ...]:
    if not isinstance(transforms.value, tuple):
        got = describe(transforms.plain())
        problems.add(transforms, f"{path}.transforms", expected="a list of transforms", got=got)
        return ()
    read = _read_saved if saved else _read_item
    nodes = [read(item, f"{path}[{index}]", problems) for index, item in enumerate(transforms.value)]
    return tuple(node for node in nodes if node is not None)


def _read_saved_file(root: Located, path: str, problems: ProblemList) -> list[ChainNode | None]:
    for key, entry in root.items.items():
        if key not in ("transform", "__version__"):
            expected = "`__version__` and `transform` only"
            problems.add(entry, path, expected=expected, got=repr(key), line=entry.key_line)
        elif key == "__version__" and not isinstance(entry.value, str):
            problems.add(entry, key, expected="a version such as 2.0.8", got=describe(entry.plain()))
    node = _read_saved(root.items["transform"], path, problems)
    if node is None or node.name != "Compose" or not node.is_composition:
        return [node]
    entries = root.items["transform"].items
    for key, value in node.params.items():
        if key != "p":
            expected = "p, transforms and what albumentations saves beside them"
            problems.add(entries[key], f"{path}.{key}", expected=expected, got=repr(key), line=entries[key].key_line)
        elif isinstance(value, bool) or value != 1:
            way_out = "save a Compose that holds one Sequential with that p"
            expected = "1.0 (a chain always runs)"
            problems.add(entries[key], f"{path}.p", expected=expected, got=describe(value), way_out=way_out)
    return list(node.children)


def _read_saved(item: Located, path: str, problems: ProblemList) -> ChainNode | None:
    full_name = item.items[SAVED_NAME].value if SAVED_NAME in item.items else None
    if not isinstance(full_name, str) or not full_name:
        problems.add(item, path, expected=f"a saved transform with `{SAVED_NAME}`", got=describe(item.plain()))
        return None
    is_ours = full_name.startswith("albumentations.")
    name = full_name.rpartition(".")[2] if is_ours else full_name
    here = f"{path}.{name}"
    if name == "Compose":
        item = _without_targets(item, here, problems)
    elif name in _SAVED_TOO_MUCH:
        kept = {key: entry for key, entry in item.items.items() if key not in _SAVED_TOO_MUCH[name]}
        item = replace(item, value=kept)
    return _read_body(name, item, here, problems, saved=True)


def _without_targets(compose: Located, path: str, problems: ProblemList) -> Located:
    """A saved Compose without the settings that concern boxes, keypoints and shape checks."""
    kept: dict[str, Located] = {}
    for key, entry in compose.items.items():
        if key in _SAVED_COMPOSE_DEFAULTS:
            if entry.plain() != _SAVED_COMPOSE_DEFAULTS[key]:
                got = describe(entry.plain())
                expected = f"{_SAVED_COMPOSE_DEFAULTS[key]!r} (images and labels only)"
                problems.add(entry, f"{path}.{key}", expected=expected, got=got, line=entry.key_line)
        elif key == "is_check_shapes":
            if not isinstance(entry.value, bool):
                problems.add(entry, f"{path}.{key}", expected="true or false", got=describe(entry.plain()))
        else:
            kept[key] = entry
    return replace(compose, value=kept)
