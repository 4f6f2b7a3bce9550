"""What replay says: every sample by its own name, and a verdict that helps on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from rich.console import Console

from headrace.past_run import PastStep
from headrace.remake import RemadeBatch, RemadeSample
from headrace.replay_report import as_table, verdict
from pipeline.errors import RunFailed
from pipeline.timeline import BatchRange
from workers.fingerprint import fingerprint
from workers.recording import Applied

RANGE = BatchRange(3, 12, 14, "cafe")
IMAGE = np.zeros((4, 4, 3), dtype=np.uint8)


def sample(name: str, **fields: Any) -> RemadeSample:
    given = {"position": 12, "index": 1, "label": 0, "class_name": "cats", "replaces": (), "applied": (), **fields}
    return RemadeSample(name=name, original_HWC=IMAGE, image_HWC=IMAGE, **given)


def batch(*samples: RemadeSample, digest: str = "aa") -> RemadeBatch:
    return RemadeBatch(range=RANGE, digest=digest, samples=samples)


class Past:
    """What the verdict looks at."""

    run, batch, digest, attempt = Path("runs/it"), RANGE, "aa", 2
    worker_fingerprint = ""

    class job:
        class config:
            class train:
                source = "photos"


def past(worker_fingerprint: str) -> PastStep:
    made = Past()
    made.worker_fingerprint = worker_fingerprint
    return cast(PastStep, made)


def test_names_are_printed_as_they_are() -> None:
    """Brackets are common in names of samples, and mean something to the table's library."""
    out = io.StringIO()
    applied = (Applied(name="Blur", within=("OneOf",), params={}),)
    replaced = sample("[red]b.jpg", replaces=(("a[bold].jpg", "cut\nshort"), ("c.jpg", "x" * 300)))
    Console(file=out, width=200).print(as_table(batch(sample("scans[17]", applied=applied), replaced)))
    text = out.getvalue()
    for said in ("scans[17]", "[red]b.jpg", "in the place of a[bold].jpg: cut short", "OneOf > Blur", "nothing"):
        assert said in text
    assert "nor could c.jpg: " + "x" * 117 + "..." in text


def test_an_equal_digest_is_said_and_nothing_raised(capsys: pytest.CaptureFixture[str]) -> None:
    verdict(past(""), batch())
    assert "digest aa: as recorded\n" == capsys.readouterr().out


@pytest.mark.parametrize(
    ("recorded", "said"),
    [("", "here: "), ("x86_64 numpy=1.0", "run:  x86_64 numpy=1.0"), (fingerprint(), "not the libraries")],
)
def test_another_digest_is_a_failed_run_with_what_can_be_the_cause(recorded: str, said: str) -> None:
    """Libraries are blamed only where they can have done it."""
    with pytest.raises(RunFailed) as caught:
        verdict(past(recorded), batch(digest="bb"))
    text = str(caught.value)
    for part in (said, "recorded:  aa (metrics.jsonl, attempt 2)", "made here: bb", "source 'photos'"):
        assert part in text
