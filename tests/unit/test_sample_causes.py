"""Causes of bad samples: what most of them have in common is named, and nothing else is."""

from __future__ import annotations

import pytest

from pipeline.errors import RunFailed
from pipeline.recipe import Chain, ChainNode
from pipeline.sample_causes import failing_transform, failure_text, way_out
from pipeline.slice_header import BadSample
from trainer.policy import MIN_BAD_BEFORE_FATAL, BadSamplePolicy

CROP = failure_text("chain[1].RandomCrop", "(31, 40, 3) uint8", "CropSizeError: (64, 64) vs (31, 40)")
OTHER = failure_text("chain[2].OneOf[0].CLAHE", "(31, 40, 3) uint16", "TypeError: no")
STALE = "[Errno 116] changed since it was indexed (14 bytes, 7 then)"
DECODING = "not a JPEG, PNG or WebP image"


@pytest.mark.parametrize(
    ("causes", "path", "hint"),
    [
        ([CROP, CROP, DECODING], "chain[1].RandomCrop", "put a Resize or PadIfNeeded before chain[1].RandomCrop"),
        ([OTHER], "chain[2].OneOf[0].CLAHE", "mend the chain at chain[2].OneOf[0].CLAHE"),
        ([CROP, DECODING], "", "mend or remove them"),
        ([CROP, OTHER], "", "mend or remove them"),
        ([DECODING], "", "mend or remove them"),
        ([], "", "mend or remove them"),
        ([STALE, STALE, DECODING], "", "`touch` its folder"),
        ([STALE, DECODING], "", "mend or remove them"),
    ],
)
def test_a_transform_is_blamed_if_more_than_half_failed_at_it(causes: list[str], path: str, hint: str) -> None:
    assert failing_transform(causes) == path
    assert hint in way_out(causes)


def test_a_run_with_too_many_of_them_says_so() -> None:
    """Raising the limit would only hide that the chain does not fit the images."""
    policy = BadSamplePolicy("substitute", 0.01, 99, identify=lambda position, attempt: (position, str(position)))
    bad = [BadSample(position=i, index=i, name=f"{i}.png", cause=CROP, substitute=0) for i in range(20)]
    assert len(bad) > MIN_BAD_BEFORE_FATAL
    with pytest.raises(RunFailed, match=r"to go on: RandomCrop needs larger images: .*, or raise max_bad_fraction"):
        policy.delivered(20, bad)


def test_a_transforms_line_is_found_by_its_path() -> None:
    inner = ChainNode(name="CLAHE", line=5)
    nodes = (ChainNode(name="Blur", line=2), ChainNode(name="OneOf", line=3, children=(inner,)))
    chain = Chain(file="f", nodes=nodes, line=1)
    lines = [chain.line_of(path) for path in ("chain[0].Blur", "chain[1].OneOf[0].CLAHE", "", "chain[7].Blur")]
    assert lines == [2, 5, 1, 1]
