"""Arrays and digits: rows are read where they lie, and what does not fit is refused before the first."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline import index_file, sources
from pipeline.errors import ConfigError
from pipeline.job import ArraysSource, DigitsSource, SourceConfig, SplitByHash
from pipeline.sources import Source, arrays

LABELS = np.array([2, 0, 1, 1, 0])


def open_source(config: SourceConfig) -> Source:
    """The base is for a plug-in's module only, and here is none."""
    return sources.open_source(config, Path())


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def images(dtype: str = "u1", *shape: int) -> np.ndarray:
    shape = shape or (5, 4, 6, 3)
    return (np.arange(np.prod(shape)) * 7).reshape(shape).astype(dtype)


def npz(path: Path, **members: np.ndarray) -> ArraysSource:
    np.savez(path, **members)
    return ArraysSource(path=path)


def npy(folder: Path, images_: np.ndarray, labels: np.ndarray = LABELS) -> ArraysSource:
    np.save(folder / "images.npy", images_)
    np.save(folder / "labels.npy", labels)
    return ArraysSource(path=folder / "images.npy", labels=folder / "labels.npy")


def refusal(config: ArraysSource) -> str:
    with pytest.raises(ConfigError) as caught:
        open_source(config)
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2"])
@pytest.mark.parametrize("shape", [(5, 4, 6), (5, 4, 6, 1), (5, 4, 6, 3), (5, 4, 6, 4)])
def test_every_row_comes_back_as_it_was_saved(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    expected = images(dtype, *shape)
    for config in (npz(tmp_path / "x.npz", images=expected, labels=LABELS), npy(tmp_path, expected)):
        source = open_source(config)
        assert (len(source), source.classes) == (5, ("0", "1", "2"))
        for index in range(5):
            sample = source.read(index)
            assert np.array_equal(expected[index], sample.data)
            assert LABELS[index] == sample.label
    assert open_source(ArraysSource(path=tmp_path / "x.npz")).describe(3) == "x.npz[images][3]"


def test_an_npz_and_two_npy_with_equal_content_are_the_same_source(tmp_path: Path) -> None:
    one = open_source(npz(tmp_path / "x.npz", labels=LABELS, images=images()))
    assert one.fingerprint == open_source(npy(tmp_path, images(), LABELS.astype("u1"))).fingerprint
    changed = images()
    changed[4, 3, 5, 2] += 1
    for other in (npz(tmp_path / "x.npz", images=changed, labels=LABELS), npy(tmp_path, images(), LABELS[::-1])):
        assert one.fingerprint != open_source(other).fingerprint


def test_the_images_are_hashed_once_and_again_when_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "UNSETTLED_NS", 0)
    config = npy(tmp_path, images())
    first = open_source(config).fingerprint
    with monkeypatch.context() as patched:
        patched.setattr(arrays, "_HASH_CHUNK_NBYTES", -1)  # hashing would now hash nothing
        assert first == open_source(config).fingerprint
    np.save(config.path, images() + 1)
    assert first != open_source(config).fingerprint
    for cached in index_file.cache_folder().glob("*.json"):
        cached.write_text("{damaged")
    assert first != open_source(config).fingerprint


def test_a_split_of_rows_covers_them_all_once(tmp_path: Path) -> None:
    every = images("u1", 200, 2, 2)
    config = npz(tmp_path / "x.npz", images=every, labels=np.zeros(200, int))
    sides = [open_source(config.model_copy(update={"split": SplitByHash(part=part)})) for part in ("train", "held_out")]
    rows = [side.describe(index) for side in sides for index in range(len(side))]
    assert sorted(f"x.npz[images][{row}]" for row in range(200)) == sorted(rows)
    assert np.array_equal(every[int(sides[1].describe(3)[14:-1])], sides[1].read(3).data)
    assert len({side.fingerprint for side in sides}) == 2


def test_a_file_that_shrinks_later_is_a_failed_read(tmp_path: Path) -> None:
    """With a mapping it would be SIGBUS, the end of the process."""
    config = npy(tmp_path, images())
    source = open_source(config)
    with open(config.path, "r+b") as file:
        file.truncate(200)
    with pytest.raises(OSError, match="ends early"):
        source.read(4)


def test_what_is_no_image_array_is_refused_with_both_sides(tmp_path: Path) -> None:
    objects = np.array([{}, {}, {}, {}, {}])
    for wrong, expected in (
        (images("f4"), "float32"),
        (images("i2"), "int16"),
        (images("u4"), "uint32"),
        (images("u1", 5, 4), "(5, 4)"),
        (images("u1", 5, 4, 6, 7), "(5, 4, 6, 7)"),
        (images("u1", 0, 4, 6), "(0, 4, 6)"),
        (images("u1", 5, 0, 6), "(5, 0, 6)"),
        (np.asfortranarray(images()), "Fortran"),
        (objects, "object"),
    ):
        assert expected in refusal(npy(tmp_path, wrong)), expected


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for wrong in (LABELS[:4], LABELS - 1, LABELS + 10**6, LABELS[:, None], LABELS / 2):
        assert "labels" in refusal(npy(tmp_path, images(), wrong))
    config = npy(tmp_path, images()).model_copy(update={"classes": ("cat", "dog")})
    assert "add classes" in refusal(config)
    named = config.model_copy(update={"classes": ("cat", "dog", "newt", "owl")})
    assert open_source(named).classes == ("cat", "dog", "newt", "owl")


def test_what_can_not_be_read_in_place_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=images(), labels=LABELS)
    assert "np.savez" in refusal(ArraysSource(path=path))
    assert "'labels'" in refusal(npz(path, images=images()))
    assert "inside the .npz" in refusal(ArraysSource(path=path, labels=path))
    assert "name the .npy with the labels" in refusal(ArraysSource(path=tmp_path / "x.npy"))
    path.write_bytes(b"no archive")
    assert "zip file" in refusal(ArraysSource(path=path))
    assert "No such file" in refusal(ArraysSource(path=tmp_path / "missing.npz"))
    config = npy(tmp_path, images())
    config.path.write_bytes(config.path.read_bytes()[:-1])
    assert "ends before" in refusal(config)
    config.path.write_bytes(b"\x93NUMPY")
    assert "NumPy array" in refusal(config)


@pytest.mark.filterwarnings("ignore")
def test_no_byte_of_a_damaged_npz_leads_to_anything_but_a_refusal_or_a_source(tmp_path: Path) -> None:
    whole = io.BytesIO()
    np.savez(whole, images=images("u1", 5, 2, 2), labels=LABELS)
    path = tmp_path / "x.npz"
    for place in range(0, len(whole.getvalue()), 3):
        damaged = bytearray(whole.getvalue())
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            open_source(ArraysSource(path=path)).read(4)
        except ConfigError:
            continue


def test_digits_are_those_of_scikit_learn_at_full_contrast() -> None:
    from sklearn.datasets import load_digits

    theirs, source = load_digits(), open_source(DigitsSource())
    assert (1797, tuple("0123456789")) == (len(source), source.classes)
    for index in (0, 17, 1796):
        sample = source.read(index)
        assert np.array_equal(np.round(theirs.images[index] * 255 / 16), sample.data)
        assert (np.uint8, theirs.target[index]) == (sample.data.dtype, sample.label)
    sides = [open_source(DigitsSource(split=SplitByHash(part=part))) for part in ("train", "held_out")]
    assert sum(map(len, sides)) == 1797
    assert len({source.fingerprint, *(side.fingerprint for side in sides)}) == 3


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"pip install headrace\[digits\]"):
        open_source(DigitsSource())


def test_a_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"not an array")
        archive.writestr("labels.npy", b"")
    assert "NumPy array" in refusal(ArraysSource(path=path))
