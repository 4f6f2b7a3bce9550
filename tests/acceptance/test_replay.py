"""`headrace replay`: any past batch, made again from the run's folder, is the one that was trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from headrace.commands.replay import replay as command
from pipeline.errors import ConfigError
from pipeline.json_lines import encode_line
from tests.acceptance.conftest import photograph
from tests.images import encoded
from tests.processes import Finished, lines_of, run_headrace, write_job

NUM_PHOTOS, BATCH_SIZE, NUM_STEPS = 34, 8, 8
DAMAGED = "cats/004.jpg"

FIRST_CHAIN: list[Any] = [
    {"RandomResizedCrop": {"size": [24, 24]}},
    {"OneOf": [{"GaussianBlur": {}}, {"Sequential": {"transforms": ["HorizontalFlip", "ColorJitter"]}}]},
    "Normalize",
    "ToTensorV2",
]
SECOND_CHAIN: list[Any] = [{"RandomCrop": {"height": 24, "width": 24}}, "VerticalFlip", "Normalize", "ToTensorV2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two epochs of four steps; its second epoch has another chain, one sample is damaged."""
    home = tmp_path_factory.mktemp("replay")
    for number in range(NUM_PHOTOS):
        path = home / "photos" / ("cats", "dogs")[number % 2] / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded("JPEG", image=photograph(number)))
    (home / "photos" / DAMAGED).write_bytes(b"not an image")
    for name, chain in (("first.yaml", FIRST_CHAIN), ("second.yaml", SECOND_CHAIN)):
        (home / name).write_text(json.dumps(chain))
    job = write_job(
        home,
        seed=7,
        sources={"photos": {"kind": "folder", "path": "photos"}},
        train={
            "source": "photos",
            "chain": [{"from_epoch": 0, "use": "first.yaml"}, {"from_epoch": 1, "use": "second.yaml"}],
            "batch_size": BATCH_SIZE,
            "epochs": 2,
        },
        model={"kind": "mlp", "width": 8, "depth": 1},
        device="cpu",
        torch_threads=1,
    )
    ended = run_headrace("train", job, "--run-dir", "run", "--workers", "2", folder=home)
    assert ended.code == 0, ended.err
    # What the run's folder has no copy of must not be needed.
    for name in ("first.yaml", "second.yaml", "job.yaml"):
        (home / name).unlink()
    return home


def replay(home: Path, *arguments: str | Path, run: Path | str = "run") -> Finished:
    return run_headrace("replay", run, *arguments, folder=home)


def copy_of(home: Path, folder: Path) -> Path:
    """The run's folder again, to be spoiled."""
    return Path(shutil.copytree(home / "run", folder / "run"))


@pytest.mark.parametrize("step", [0, 4, NUM_STEPS - 1])
def test_a_past_batch_has_its_recorded_digest(home: Path, step: int) -> None:
    """Before and after the scheduled swap at step 4, from what the folder itself holds of both chains."""
    ended = replay(home, "--step", str(step), "--samples", "8")
    assert (0, "") == (ended.code, ended.err)
    (line,) = [line for line in lines_of(home / "run" / "metrics.jsonl") if line["step"] == step]
    assert f"digest {line['digest']}: as recorded" in ended.out
    assert f"recipe {line['recipe']}" in ended.out
    assert ("RandomResizedCrop" if step < 4 else "RandomCrop") in ended.out


@pytest.mark.long
def test_the_sheet_shows_the_damaged_sample_and_another_chain(home: Path, tmp_path: Path) -> None:
    """The step that met it says which sample stands in its place."""
    (bad, *_) = [line for line in lines_of(home / "run" / "journal.jsonl") if line["action"] == "bad_sample"]
    assert DAMAGED == bad["name"]
    steps = {line["position"]: line["step"] for line in lines_of(home / "run" / "metrics.jsonl")}
    step = max(number for start, number in steps.items() if start <= bad["position"])
    (tmp_path / "other.yaml").write_text(json.dumps([{"CenterCrop": {"height": 20, "width": 20}}]))
    sheet = tmp_path / "sheet.png"
    ended = replay(home, "--step", str(step), "--out", sheet, "--compare", tmp_path / "other.yaml")
    assert (0, "") == (ended.code, ended.err)
    assert f"in the place of {DAMAGED}" in " ".join(ended.out.split())
    with Image.open(sheet) as drawn:
        drawn.load()
        assert min(drawn.size) > 208 * 2
    assert ["other.yaml", "sheet.png"] == sorted(path.name for path in tmp_path.iterdir())


def test_another_digest_than_the_recorded_one_ends_in_1_with_both_and_the_causes(home: Path, tmp_path: Path) -> None:
    """The sheet is drawn all the same: to see what differs is what the user needs then."""
    run = copy_of(home, tmp_path)
    lines = lines_of(run / "metrics.jsonl")
    true = lines[2]["digest"]
    for line in lines:
        del line["crc"]
    lines[2]["digest"] = "0" * 64
    (run / "metrics.jsonl").write_bytes(b"".join(map(encode_line, lines)))
    ended = replay(home, "--step", "2", "--out", tmp_path / "sheet.png", run=run)
    assert 1 == ended.code
    assert true in ended.err
    assert "0" * 64 in ended.err
    assert "probable causes" in ended.err
    assert (tmp_path / "sheet.png").exists()
    assert 0 == replay(home, "--step", "3", run=run).code


@pytest.mark.long
def test_a_line_that_was_edited_in_place_is_no_line(home: Path, tmp_path: Path) -> None:
    """Its checksum gives it away, before any digest is compared."""
    run = copy_of(home, tmp_path)
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text.replace('"step":2', '"step":9'))
    ended = replay(home, "--step", "2", run=run)
    assert ended.code in (1, 2)
    assert f"{run / 'metrics.jsonl'}" in ended.err


@pytest.mark.long
def test_a_sample_that_was_rewritten_is_noticed(home: Path, tmp_path: Path) -> None:
    """At equal size, which the fingerprint of paths and sizes can't tell."""
    photos = Path(shutil.copytree(home / "photos", tmp_path / "photos"))
    for path in photos.rglob("*.jpg"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    ended = replay(home, "--step", "5", "--source", f"photos={photos}")
    assert 1 == ended.code
    assert "source 'photos'" in ended.err
    assert "the batch made here is not the one" in ended.err


@pytest.mark.long
def test_a_source_that_was_moved_or_changed_is_told_and_can_be_named(home: Path, tmp_path: Path) -> None:
    """Moved: --source. With a file more: both fingerprints, unless the run's own index is still there."""
    moved = home / "photos-elsewhere"
    (home / "photos").rename(moved)
    try:
        lost = replay(home, "--step", "1")
        assert (2, True) == (lost.code, "--source photos=DIR" in lost.err)
        assert 0 == replay(home, "--step", "1", "--source", f"photos={moved}").code
    finally:
        moved.rename(home / "photos")
    photos = Path(shutil.copytree(home / "photos", tmp_path / "photos"))
    (photos / "cats" / "new.jpg").write_bytes(encoded("JPEG"))
    changed = replay(home, "--step", "1", "--source", f"photos={photos}")
    assert 2 == changed.code
    assert "fingerprint" in changed.err
    assert f"{NUM_PHOTOS + 1} samples" in changed.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"step": NUM_STEPS}, f"a step from 0 to {NUM_STEPS - 1}"),
        ({"step": 1, "compare": "missing.yaml", "out": "a.png"}, "missing.yaml"),
        ({"step": 1, "compare": "missing.yaml"}, "--out FILE.png beside it"),
        ({"step": 1, "compare": "wrong.yaml", "out": "a.png"}, "wrong.yaml:2: chain[1].RandomCorp"),
        ({"step": 1, "source": ["fotos=/tmp"]}, "one of photos"),
        ({"step": 1, "source": ["photos=/nowhere"]}, "--source photos=DIR"),
        ({"step": 1, "out": "no/such/folder/a.png"}, "--out"),
        ({"step": 1, "run": "photos"}, "photos"),
        ({"step": 1, "run": "nowhere"}, "nowhere"),
    ],
)
def test_a_wrong_request_is_refused_with_its_place(
    home: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    """Called in this process: nothing is compared bit by bit before the refusal."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    (home / "wrong.yaml").write_text("- HorizontalFlip\n- RandomCorp: {height: 8, width: 8}\n")
    paths = {name: Path(options[name]) for name in ("run", "compare", "out") if name in options}
    with pytest.raises(ConfigError) as caught:
        command(**{"run": Path("run"), "samples": 4, **options, **paths})
    assert said in str(caught.value)
    assert not (home / "a.png").exists()


def test_a_sheet_into_a_folder_that_is_not_there_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mkdir -p"):
        command(run=tmp_path, step=0, out=tmp_path / "no such folder" / "sheet.png")
