"""A recipe: all that shapes a sample's bytes, known by its digest.

In:  a parsed chain, decode settings, digests of plug-ins.
Out: `Recipe` (sent to workers) and `BatchSpec` (what a worker's probe answers with).
No YAML, no albumentations: this is only the data both sides agree on.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec


class ChainNode(msgspec.Struct, frozen=True, kw_only=True):
    """One transform or composition of a chain, as the user wrote it, with the line of each part."""

    name: str
    params: dict[str, Any] = {}
    """Arguments as written (plain YAML values); what is missing is the class's own default."""
    children: tuple[ChainNode, ...] = ()
    """The nested `transforms` of a composition (OneOf, SomeOf, Sequential, ...)."""
    is_composition: bool = False
    """True if a `transforms` key was written, even an empty one."""
    line: int = 0
    param_lines: dict[str, int] = {}

    def normalised(self) -> dict[str, Any]:
        """The part of the node that shapes bytes: no lines, no formatting, no key order."""
        plain: dict[str, Any] = {"name": self.name, "params": self.params}
        if self.is_composition:
            plain["transforms"] = [child.normalised() for child in self.children]
        return plain


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """A chain file (or a list inside a job file), parsed but not yet built."""

    file: str
    nodes: tuple[ChainNode, ...]
    line: int = 0
    path: str = "chain"
    """How error messages name the list itself: `chain`, or `train.chain` inside a job file."""

    def line_of(self, path: str) -> int:
        """Line of the transform at a path such as `chain[2].OneOf[0].Blur`; of the whole list if it isn't here."""
        return _line_of(path, self.nodes, self.path) or self.line


class Decode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an encoded image becomes before the chain sees it."""

    color: Literal["rgb", "gray"] = "rgb"
    depth: Literal[8, 16] = 8
    """Bits a channel: 8 gives uint8, 16 gives uint16 scaled to the full range, whatever the file holds."""
    max_pixels: int = 64_000_000
    """A file whose header claims more pixels is a bad sample (decompression bomb). 64 Mpx: a 61 Mpx
    camera is the largest in common use; chosen, not measured."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """Chain + decode + plug-in digests; two recipes with equal digests make equal bytes."""

    chain: Chain
    decode: Decode = Decode()
    plugins: dict[str, str] = {}
    """Plug-in module name -> SHA-256 of its source file. Workers map names to their own modules."""

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the normalised content."""
        plain = {
            "format": 1,
            "chain": [node.normalised() for node in self.chain.nodes],
            "decode": msgspec.to_builtins(self.decode),
            "plugins": self.plugins,
        }
        return hashlib.sha256(msgspec.json.encode(plain, order="deterministic")).hexdigest()[:16]


class FieldSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One field of a sample on the wire: shape of ONE sample, NumPy dtype name such as `uint8`."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """What the trainer does to a received image batch: `float32(x) * scale + shift`, per channel.

    Deferred from the chain's tail: Normalize (mode "standard") and ToTensorV2. Both tuples are empty when
    nothing is normalised; then the image keeps its wire dtype.
    """

    scale: tuple[float, ...] = ()
    """1 / (std * max_pixel_value), one a channel or one for all."""
    shift: tuple[float, ...] = ()
    """-mean / std, one a channel or one for all."""
    channels_first: bool = False
    """True after ToTensorV2: tensors are NCHW (in channels_last memory); otherwise NHWC."""


class BatchSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream under one recipe delivers: wire fields of one sample, then the finish.

    fields[0] is always `image`; labels travel as the int64 field `label`.
    """

    fields: tuple[FieldSpec, ...]
    finish: Finish = Finish()


def _line_of(path: str, nodes: tuple[ChainNode, ...], above: str) -> int:
    for index, node in enumerate(nodes):
        here = f"{above}[{index}].{node.name}"
        if line := node.line if here == path else _line_of(path, node.children, here):
            return line
    return 0
