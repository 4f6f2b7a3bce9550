"""Files that are no sound images: named, counted, and handled by the job's policy; nothing hangs."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.embedded import open_streams
from pipeline.config import dump_job, load_job
from pipeline.run_folder import RunFolder
from tests.acceptance.conftest import NUM_PHOTOS, photograph
from tests.images import animated, bomb, encoded
from tests.processes import DEADLINE_S, lines_of, run_headrace, workers, write_job

BAD_FILES = {
    "truncated.jpg": encoded("JPEG")[:700],
    "truncated.png": encoded("PNG")[:-200],
    "empty.jpg": b"",
    "text.jpg": b"this is no image at all",
    "bomb.png": bomb("PNG"),
    "bomb.jpg": bomb("JPEG"),
    "animated.webp": animated("WEBP"),
    "animated.png": animated("PNG"),
}
SOUND_FILES = {"cmyk.jpg": encoded("JPEG", "CMYK"), "png-inside.jpg": encoded("PNG"), "gray.png": encoded("PNG", "L")}
"""Odd, but decodable: CMYK, a wrong extension, one channel."""


def put(photos: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (photos / "cats" / name).write_bytes(data)


def photo_job(photos: Path, chain: list[Any] | None = None, **fields: Any) -> Path:
    chain = chain or [{"Resize": {"height": 16, "width": 16}}]
    tail = [{"Normalize": {}}, {"ToTensorV2": {}}]
    return write_job(
        photos.parent,
        **{
            "sources": {"photos": {"kind": "folder", "path": str(photos)}},
            "train": {"source": "photos", "chain": [*chain, *tail], "batch_size": 8, "last_batch": "keep"},
            "slice_size": 4,
            "model": {"kind": "mlp", "width": 4, "depth": 1},
            "device": "cpu",
            **fields,
        },
    )


def bad_samples(run_dir: Path) -> dict[str, str]:
    """Name -> cause, as the journal tells."""
    events = [line for line in lines_of(run_dir / "journal.jsonl") if line["action"] == "bad_sample"]
    return {event["name"]: event["cause"] for event in events}


def test_every_bad_file_is_substituted_and_named_with_its_cause(tmp_path, photos):
    """Law 7: the run goes on, and the journal says which files to mend and why; odd but sound files are no trouble."""
    put(photos, BAD_FILES | SOUND_FILES | {"large.png": encoded("PNG", image=photograph(0).repeat(2, axis=0))})
    run_dir = tmp_path / "run"
    job = photo_job(photos, decode={"max_pixels": 5000}, max_bad_fraction=1.0)
    ended = run_headrace("train", job, "--workers", "2", "--run-dir", run_dir, folder=tmp_path)
    assert ended.code == 0, ended.err
    causes = bad_samples(run_dir)
    expected = {
        "truncated.jpg": "cut short",
        "truncated.png": "cut short",
        "empty.jpg": "an empty file",
        "text.jpg": "neither JPEG, PNG nor WebP",
        "bomb.png": "can't hold the 60000x60000 pixels",
        "bomb.jpg": "can't hold the 60000x60000 pixels",
        "large.png": "max_pixels",
        "animated.webp": "only still images are read",
        "animated.png": "only still images are read",
    }
    assert sorted(causes) == sorted(f"cats/{name}" for name in expected)
    assert f"bad samples: {len(expected)} replaced by others" in ended.out
    assert "; journal.jsonl names them" in ended.out
    for name, part in expected.items():
        assert part in causes[f"cats/{name}"], causes
    num_samples = sum(line["num_samples"] for line in lines_of(run_dir / "metrics.jsonl"))
    assert num_samples == NUM_PHOTOS + len(expected) + len(SOUND_FILES)


@pytest.mark.long
def test_files_that_can_not_be_read_are_quarantined_before_they_are_substituted(tmp_path, photos):
    """A failed read may pass or work elsewhere: it is tried again, then written down, and the run goes on."""
    (photos / "cats" / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    (photos / "dogs" / "circle.jpg").symlink_to(photos / "dogs" / "circle.jpg")
    run_dir = tmp_path / "run"
    ended = run_headrace("train", photo_job(photos), "--workers", "2", "--run-dir", run_dir, folder=tmp_path)
    assert ended.code == 0, ended.err
    entries = {line["name"]: line["cause"] for line in lines_of(run_dir / "quarantine.jsonl")}
    assert sorted(entries) == ["cats/dangling.jpg", "dogs/circle.jpg"]
    assert "the read failed" in entries["cats/dangling.jpg"]
    assert "No such file" in entries["cats/dangling.jpg"]
    assert "Too many levels of symbolic links" in entries["dogs/circle.jpg"]
    assert bad_samples(run_dir) == entries


@pytest.mark.long
def test_files_that_went_or_changed_after_indexing_are_named(tmp_path, photos, monkeypatch):
    """The index promised them, so their absence is told, and the batches stay whole."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    chain = [{"Resize": {"height": 16, "width": 16}}, {"ToTensorV2": {}}]
    section = {"source": "photos", "chain": chain, "batch_size": 8, "epochs": 1000}
    job = load_job(photo_job(photos, train=section, window_batches=1, max_bad_fraction=1.0))
    run_dir = tmp_path / "run"
    with RunFolder.create(run_dir, dump_job(job.config)) as folder, open_streams(job, 2, folder) as streams:
        batches = iter(streams.train)
        give_up_s = time.monotonic() + DEADLINE_S
        while not (old := openers(tmp_path / "cache")):
            assert time.monotonic() < give_up_s
            next(batches)
        (photos / "cats" / "000.jpg").unlink()
        (photos / "dogs" / "001.jpg").write_bytes(b"short")
        (photos / "dogs" / "new.jpg").write_bytes(b"not of this run")
        next(iter(old)).kill()  # the worker that takes its place opens the folder as it is now
        num_batches = 0
        # A whole epoch, what was on its way before it, and as long as the new worker needs.
        while num_batches < NUM_PHOTOS // 8 + 2 or not openers(tmp_path / "cache") - old:
            assert time.monotonic() < give_up_s
            assert next(batches).images.shape[0] == 8
            num_batches += 1
    causes = bad_samples(run_dir)
    assert sorted(causes) == ["cats/000.jpg", "dogs/001.jpg"]
    assert "No such file" in causes["cats/000.jpg"]
    assert "changed since it was indexed" in causes["dogs/001.jpg"]


def openers(cache: Path) -> set[psutil.Process]:
    """The workers of this process that have opened the folder source: they map its index."""
    found = set()
    for worker in workers(os.getpid()):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(mapping.path.startswith(str(cache)) for mapping in worker.memory_maps()):
                found.add(worker)
    return found


@pytest.mark.long
def test_under_fail_the_first_bad_file_ends_the_run_and_is_named(tmp_path, photos):
    """Exit code 1, the file, the cause, and what to do."""
    put(photos, {"text.jpg": BAD_FILES["text.jpg"]})
    ended = run_headrace("digest", photo_job(photos, on_bad_sample="fail"), "--workers", "1", folder=tmp_path)
    assert ended.code == 1
    for part in (
        "bad sample cats/text.jpg (position ",
        "neither JPEG, PNG nor WebP",
        "on_bad_sample: fail",
        "to go on:",
    ):
        assert part in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.long
def test_more_bad_files_than_allowed_end_the_run_with_a_list_of_the_first(tmp_path, photos):
    """Ten may pass in any run; more than the fraction beyond that means that the data set is broken.

    It is judged slice by slice, and a slice may hold two: the count that ends the run is 11 or 12.
    """
    put(photos, {f"bad-{number:02}.jpg": b"no image" for number in range(13)})
    ended = run_headrace("digest", photo_job(photos), "--workers", "2", folder=tmp_path)
    assert ended.code == 1
    assert re.search(r"\b1[12] bad samples among", ended.err)
    assert "more than the 10 allowed" in ended.err
    assert ended.err.count("    cats/bad-") == 10
    assert "raise max_bad_fraction" in ended.err


@pytest.mark.long
def test_two_files_that_are_bad_in_each_of_ten_epochs_are_two_bad_samples(tmp_path, photos):
    """Twenty meetings once ended such a run, as twenty bad samples."""
    put(photos, {"000.jpg": b"no image", "002.jpg": b"none either"})
    run_dir = tmp_path / "run"
    section = {"source": "photos", "chain": [{"Resize": {"height": 16, "width": 16}}, "Normalize", "ToTensorV2"]}
    job = photo_job(photos, train={**section, "batch_size": 8, "epochs": 10})
    ended = run_headrace("train", job, "--workers", "1", "--run-dir", run_dir, folder=tmp_path)
    assert ended.code == 0, ended.err
    assert re.search(r"bad samples: 2 replaced by others \(2[0-9] times\); journal", ended.out)
    shown = run_headrace("status", "--run-dir", run_dir, folder=tmp_path).out
    assert re.search(r"bad samples +2 replaced by others \(2[0-9] times\)", shown)


def test_a_chain_whose_output_shape_varies_is_refused_with_both_samples_and_shapes(tmp_path, photos):
    """Found by the probe, before the first batch: a mistake in the user's chain, so exit code 2."""
    ended = run_headrace("digest", photo_job(photos, chain=[{"HorizontalFlip": {}}]), "--workers", "1", folder=tmp_path)
    assert ended.code == 2
    assert "job.yaml:" in ended.err
    assert "add a crop or Resize" in ended.err
    assert ended.err.count(".jpg: ") == 2


@pytest.mark.long
def test_an_odd_sample_that_the_probe_missed_stops_the_run_by_name(tmp_path, photos):
    """The probe tries eight samples; the ninth kind of sample is still told with both shapes."""
    odd = 3  # positions 0, 5, 10, ... are probed
    for number in range(NUM_PHOTOS):
        image = photograph(0)[: 40 if number == odd else 48, :50]
        (photos / ("cats", "dogs")[number % 2] / f"{number:03}.jpg").unlink()
        (photos / "cats" / f"{number:03}.jpg").write_bytes(encoded("JPEG", image=image))
    (photos / "dogs" / "040.jpg").write_bytes(encoded("JPEG", image=photograph(0)[:48, :50]))
    section = {"source": "photos", "chain": [{"HorizontalFlip": {}}], "batch_size": 8, "shuffle": False}
    ended = run_headrace("digest", photo_job(photos, train=section), "--workers", "1", folder=tmp_path)
    assert ended.code == 1
    for part in ("cats/003.jpg: 40x50x3 uint8", "48x50x3 uint8", "add a crop or Resize"):
        assert part in ended.err
