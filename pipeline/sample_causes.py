"""What many bad samples have in common: one transform that they all fail at is the chain's fault, not theirs.

In:  the causes of bad samples, as workers word them.
Out: the path of the transform that most of them failed at, and the way out.
Pure; `failure_text` is the one place where a transform's failure is worded, so that it can be read back here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

_FAILED = " failed on an image "
_TOO_SMALL = ("CropSizeError", "equal or smaller than image sizes")
"""Parts of what albumentations 2.0.8 says of images that are smaller than a crop, both sizes included."""
CHANGED = "changed since it was indexed"
INDEX_ANEW = "`touch` its folder, or its manifest, which is indexed anew then, and begin a new run"


def failure_text(path: str, image: str, error: str) -> str:
    """The cause of a sample that the transform at `path` could not work on."""
    return f"{path}{_FAILED}{image}: {error}"


def failing_transform(causes: Collection[str]) -> str:
    """Path of the transform that more than half of the samples failed at; "" if there is none."""
    paths = Counter(cause.partition(_FAILED)[0] for cause in causes if _FAILED in cause)
    path, num_samples = paths.most_common(1)[0] if paths else ("", 0)
    return path if 2 * num_samples > len(causes) else ""


def way_out(causes: Collection[str]) -> str:
    """What a user can do about such samples."""
    if 2 * sum(CHANGED in cause for cause in causes) > len(causes):
        return INDEX_ANEW
    path = failing_transform(causes)
    if not path:
        return "mend or remove them"
    own = [cause for cause in causes if cause.startswith(path + _FAILED)]
    if any(part in own[0] for part in _TOO_SMALL):
        name = path.rpartition(".")[2]
        return f"{name} needs larger images: put a Resize or PadIfNeeded before {path}, or take RandomResizedCrop there"
    return f"mend the chain at {path}, where they fail, or remove them"
