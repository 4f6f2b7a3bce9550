"""The demo's images: the same each time, held-out from regions of their own, whole or not there."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headrace import demo_images
from headrace.commands.demo_data import demo_data
from headrace.demo_images import PHOTOGRAPHS, choose_crop
from pipeline.errors import ConfigError
from pipeline.job import FolderSource
from pipeline.recipe import Decode
from pipeline.sources import open_source
from workers.decode import decode


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small set: which images there are does not depend on how many."""
    monkeypatch.setattr(demo_images, "NUM_TRAIN_PER_CLASS", 3)
    monkeypatch.setattr(demo_images, "NUM_HELD_OUT_PER_CLASS", 2)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        demo_data(folder)
    return str(caught.value)


def test_the_two_regions_of_each_photograph_lie_inside_it_and_never_overlap() -> None:
    for photograph in PHOTOGRAPHS:
        width, height = photograph.size
        covered = np.zeros((height, width), int)
        for left, top, right, bottom in (photograph.train, photograph.held_out):
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1


def test_every_crop_lies_in_its_region_and_every_image_is_of_the_promised_size() -> None:
    for photograph in PHOTOGRAPHS:
        for part, (left, top, right, bottom) in (("train", photograph.train), ("held_out", photograph.held_out)):
            for number in range(300):
                box, image_width = choose_crop(photograph, part, number)
                assert left <= box[0] < box[2] <= right
                assert top <= box[1] < box[3] <= bottom
                assert 160 <= image_width <= 500
                assert image_width % 4 == 0


def test_there_are_at_least_two_thousand_images_in_six_classes() -> None:
    assert demo_images.num_images() >= 2000
    assert len({photograph.name for photograph in PHOTOGRAPHS}) == 6


@pytest.mark.usefixtures("few")
def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    demo_data(tmp_path / "one")
    demo_data(tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.usefixtures("few")
def test_the_images_open_as_folder_sources_with_the_same_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    demo_data(tmp_path / "demo")
    folders = [tmp_path / "demo" / part for part in ("train", "held_out")]
    train, held_out = (open_source(FolderSource(path=folder), tmp_path) for folder in folders)
    assert train.classes == held_out.classes == tuple(sorted(photograph.name for photograph in PHOTOGRAPHS))
    assert (len(train), len(held_out)) == (18, 12)
    for index in range(len(train)):
        height, width, channels = decode(train.read(index).data, Decode()).shape
        assert (width * 3 // 4, 3) == (height, channels)


@pytest.mark.usefixtures("few")
def test_the_licence_of_every_photograph_lies_beside_the_images(tmp_path: Path) -> None:
    demo_data(tmp_path / "demo")
    text = (tmp_path / "demo" / "LICENSES.md").read_text(encoding="utf-8")
    for photograph in PHOTOGRAPHS:
        assert photograph.credit in text
        assert "CC0" in photograph.credit or "public domain" in photograph.credit


@pytest.mark.usefixtures("few")
def test_a_second_run_leaves_finished_data_alone_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    demo_data(tmp_path / "demo")
    assert "wrote 30 JPEGs" in capsys.readouterr().out
    monkeypatch.setattr(demo_images, "make_images", lambda: pytest.fail("made again"))
    demo_data(tmp_path / "demo")
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.usefixtures("few")
def test_what_an_interrupted_run_wrote_is_never_taken_for_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_images = demo_images.make_images

    def interrupted():  # type: ignore[no-untyped-def]
        yield next(make_images())
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(demo_images, "make_images", interrupted)
        with pytest.raises(KeyboardInterrupt):
            demo_data(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
    (tmp_path / ".demo.partial" / "train" / "stray.jpg").write_bytes(b"of an older version")
    demo_data(tmp_path / "demo")
    demo_data(tmp_path / "other")
    assert contents(tmp_path / "other") == contents(tmp_path / "demo")
    assert sorted(os.listdir(tmp_path)) == ["demo", "other"]


@pytest.mark.usefixtures("few")
def test_data_that_has_lost_images_is_refused(tmp_path: Path) -> None:
    demo_data(tmp_path / "demo")
    next((tmp_path / "demo").rglob("*.jpg")).unlink()
    assert "29 images" in refusal(tmp_path / "demo")


@pytest.mark.usefixtures("few")
def test_an_empty_folder_is_filled_and_any_other_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    demo_data(tmp_path / "empty")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    assert "a folder with other files" in refusal(tmp_path / "mine")
    assert "a file" in refusal(tmp_path / "mine" / "thesis.txt")
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_two_writers_at_once_are_kept_apart(tmp_path: Path) -> None:
    partial = tmp_path / ".demo.partial"
    partial.mkdir()
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert "another demo-data" in refusal(tmp_path / "demo")
    finally:
        os.close(descriptor)


def test_without_scikit_image_the_command_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "pip install 'headrace[demo]'" in refusal(tmp_path / "demo")
    assert not list(tmp_path.iterdir())


def test_a_photograph_of_another_size_is_refused_and_not_cut_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    import skimage.data

    monkeypatch.setattr(skimage.data, "astronaut", lambda: np.asarray(Image.new("RGB", (100, 100))))
    with pytest.raises(ValueError, match="astronaut"):
        next(demo_images.make_images())
