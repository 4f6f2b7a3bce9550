"""Folder and manifest sources: the same samples in the same order wherever they lie, and no surprise on a read."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import index_file, sources
from pipeline.errors import ConfigError
from pipeline.job import FolderSource, ManifestSource, SourceConfig, SplitByHash
from pipeline.sources import Source, folder
from pipeline.sources.split import is_on_side, unit_hash

Write = Callable[..., Path]


def open_source(config: SourceConfig, wanted: str = "") -> Source:
    """The base is for a plug-in's module only, and here is none."""
    return sources.open_source(config, Path(), wanted)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "headrace" / "index"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data written a moment ago counts as settled; a change time is never after the scan that follows it."""
    monkeypatch.setattr(index_file, "UNSETTLED_NS", 0)


def write(root: Path, *names: str | bytes) -> Path:
    """Files whose content is their own name."""
    for name in names:
        path = Path(os.fsdecode(os.path.join(os.fsencode(root), os.fsencode(name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return root


def names_of(source: Source) -> list[str]:
    return [source.describe(index) for index in range(len(source))]


def refusal(config: FolderSource | ManifestSource) -> str:
    with pytest.raises(ConfigError) as caught:
        open_source(config)
    assert all(problem.file for problem in caught.value.problems)
    return str(caught.value)


def test_a_folder_lists_images_below_each_class_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    """`a-b/` comes before `a/` in bytes; labels follow the names of the classes."""
    names = ("a/2.jpg", "a/1.PNG", "a/deep/er/3.WebP", "a-b/x.jpeg", "a/deep.jpg", "é/ü.JPG", "Z/ b\n.png")
    write(tmp_path / "data", *names, "a/notes.txt", "a/.hidden.jpg", ".git/x.jpg", "loose.jpg")
    source = open_source(FolderSource(path=tmp_path / "data"))
    in_order = sorted(names, key=str.encode)
    assert source.classes == ("Z", "a", "a-b", "é")
    assert [name.replace("\n", "\\n") for name in in_order] == names_of(source)
    for index, name in enumerate(in_order):
        sample = source.read(index)
        assert (name.encode(), source.classes.index(name.split("/")[0])) == (sample.data, sample.label)


def test_names_that_are_not_utf_8_are_read_and_shown_with_escapes(tmp_path: Path) -> None:
    source = open_source(FolderSource(path=write(tmp_path / "data", b"a\xff/\xfe.jpg")))
    assert (names_of(source), source.classes) == (["a\\xff/\\xfe.jpg"], ("a\\xff",))
    assert source.read(0).data == b"a\xff/\xfe.jpg"


def test_the_fingerprint_says_what_the_samples_are_and_not_where_or_when(tmp_path: Path) -> None:
    one = open_source(FolderSource(path=write(tmp_path / "one", "a/1.jpg", "b/2.jpg")))
    write(tmp_path / "two", "b/2.jpg")
    os.utime(tmp_path / "two/b/2.jpg", (1, 1))
    two = open_source(FolderSource(path=write(tmp_path / "two", "a/1.jpg")))
    assert one.fingerprint == two.fingerprint
    others = [
        open_source(FolderSource(path=write(tmp_path / "more", "a/1.jpg", "b/2.jpg", "b/3.jpg"))),
        open_source(FolderSource(path=write(tmp_path / "named", "a/1.jpg", "c/2.jpg"))),
        open_source(FolderSource(path=tmp_path / "one", content=True)),
    ]
    (write(tmp_path / "sized", "a/1.jpg", "b/2.jpg") / "a/1.jpg").write_bytes(b"longer than it was")
    others.append(open_source(FolderSource(path=tmp_path / "sized")))
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_content_true_tells_files_of_equal_size_apart(tmp_path: Path) -> None:
    for name, byte in (("one", b"x"), ("two", b"y")):
        write(tmp_path / name, "a/1.jpg")
        (tmp_path / name / "a/1.jpg").write_bytes(byte)
    plain = [open_source(FolderSource(path=tmp_path / name)).fingerprint for name in ("one", "two")]
    content = [open_source(FolderSource(path=tmp_path / name, content=True)).fingerprint for name in ("one", "two")]
    assert plain[0] == plain[1]
    assert content[0] != content[1]


def test_the_data_folder_is_never_written_to(tmp_path: Path, cache: Path) -> None:
    data = write(tmp_path / "data", "a/1.jpg")
    before = sorted(path.name for path in data.rglob("*"))
    open_source(FolderSource(path=data))
    assert before == sorted(path.name for path in data.rglob("*"))
    assert sorted(path.suffix for path in cache.iterdir()) == [".index", ".lock"]


@pytest.mark.usefixtures("settled")
def test_a_second_start_maps_the_index_and_lists_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = FolderSource(path=write(tmp_path / "data", "a/1.jpg", "a/deep/2.jpg"))
    first = open_source(config)
    monkeypatch.setattr(folder, "_scan", lambda *_: pytest.fail("listed again"))
    second = open_source(config)
    assert (first.fingerprint, names_of(first)) == (second.fingerprint, names_of(second))


def add(data: Path) -> None:
    write(data, "a/deep/new.jpg")


def remove(data: Path) -> None:
    (data / "a/deep/2.jpg").unlink()


def rename(data: Path) -> None:
    (data / "a/1.jpg").rename(data / "a/renamed.jpg")


def add_class(data: Path) -> None:
    write(data, "b/3.jpg")


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", [add, remove, rename, add_class])
def test_files_that_come_and_go_are_noticed_at_the_next_start(tmp_path: Path, change: Callable[[Path], None]) -> None:
    config = FolderSource(path=write(tmp_path / "data", "a/1.jpg", "a/deep/2.jpg", "a/deep/4.jpg"))
    before = open_source(config)
    change(config.path)
    after = open_source(config)
    listed = sorted(str(path.relative_to(config.path)) for path in config.path.rglob("*.jpg"))
    assert listed == names_of(after)
    assert before.fingerprint != after.fingerprint


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", [add, remove, rename, add_class])
def test_a_run_goes_by_the_index_it_began_with_whoever_makes_another(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """Else a file that comes or goes while a job runs would end it at the next worker's start: at once, or once
    `headrace check` or another job has looked at the folder."""
    config = FolderSource(path=write(tmp_path / "data", "a/1.jpg", "a/deep/2.jpg", "a/deep/4.jpg"))
    before = open_source(config)
    change(config.path)
    for _ in range(2):
        late = open_source(config, before.fingerprint)
        assert names_of(before) == names_of(late)
        assert before.fingerprint == late.fingerprint
        other = open_source(config)
        assert before.fingerprint != other.fingerprint
        assert other.fingerprint == open_source(config, "some other run's").fingerprint


@pytest.mark.usefixtures("settled")
def test_only_indexes_that_nobody_used_for_long_are_removed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the newest few, and what a killed writer left. A scan that finds the same samples adds no file."""
    monkeypatch.setattr(index_file, "NUM_KEPT", 2)
    config = FolderSource(path=write(tmp_path / "data", "a/0.jpg"))
    made: list[Source] = []
    for number in range(5):
        write(config.path, f"a/{number}.jpg")
        made.append(open_source(config))
    assert len(list(cache.glob("*.index"))) == 5
    (cache / f"{next(cache.glob('*.index')).name}.tmp").write_bytes(b"half")
    long_ago = time.time() - index_file.KEPT_S - 60
    for file in cache.glob("*.index"):
        os.utime(file, (long_ago, long_ago))
    assert open_source(config, made[0].fingerprint).fingerprint == made[0].fingerprint  # so it is used again
    (config.path / "a/1.jpg").unlink()
    made.append(open_source(config))
    assert sorted(file.stem[33:] for file in cache.glob("*.index")) == sorted(
        [made[0].fingerprint, made[-1].fingerprint]
    )
    assert not list(cache.glob("*.tmp"))
    assert names_of(made[2]) == ["a/0.jpg", "a/1.jpg", "a/2.jpg"], "what is removed stays readable where it is open"
    os.utime(config.path / "a")
    open_source(config)
    assert len(list(cache.glob("*.index"))) == 2


@pytest.mark.usefixtures("settled")
def test_a_peers_fingerprint_never_becomes_a_path(tmp_path: Path, cache: Path) -> None:
    config = FolderSource(path=write(tmp_path / "data", "a/1.jpg"))
    right = open_source(config).fingerprint
    (file,) = cache.glob("*.index")
    for wanted in ("*", "/../../x", f"/../{file.name}", "\0", "x" * 5000):
        assert right == open_source(config, wanted).fingerprint


@pytest.mark.usefixtures("settled")
def test_with_content_a_file_rewritten_in_place_is_noticed(tmp_path: Path) -> None:
    config = FolderSource(path=write(tmp_path / "data", "a/1.jpg"), content=True)
    before = open_source(config).fingerprint
    assert before == open_source(config).fingerprint
    (config.path / "a/1.jpg").write_bytes(b"A/1.JPG")
    assert before != open_source(config).fingerprint


def test_an_index_of_data_written_a_moment_ago_is_not_trusted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change within the same tick of the file system's clock could not be seen."""
    config = FolderSource(path=write(tmp_path / "data", "a/1.jpg"))
    scans = []
    scan = folder._scan
    monkeypatch.setattr(folder, "_scan", lambda *arguments: scans.append(1) or scan(*arguments))
    open_source(config)
    open_source(config)
    assert len(scans) == 2


@pytest.mark.usefixtures("settled")
@given(place=st.integers(0, 10**6), value=st.integers(0, 255), cut=st.integers(0, 40))
def test_a_damaged_cache_file_is_made_again(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, cut: int
) -> None:
    """Whatever byte is wrong or missing: the samples are those of the data, never those of the damage."""
    data = write(tmp_path_factory.mktemp("data"), "a/1.jpg", "b/2.jpg")
    key_before = open_source(FolderSource(path=data))
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "headrace" / "index"
    newest = max(cache.glob("*.index"), key=lambda file: file.stat().st_mtime_ns)
    content = bytearray(newest.read_bytes())
    content[place % len(content)] = value
    newest.write_bytes(content[: len(content) - cut])
    again = open_source(FolderSource(path=data))
    assert (["a/1.jpg", "b/2.jpg"], key_before.fingerprint) == (names_of(again), again.fingerprint)


def test_two_that_start_at_once_get_the_same_index(tmp_path: Path, cache: Path) -> None:
    config = FolderSource(path=write(tmp_path / "data", *(f"a/{number}.jpg" for number in range(200))))
    found: list[Source] = []
    threads = [threading.Thread(target=lambda: found.append(open_source(config))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({source.fingerprint for source in found}) == 1
    assert not list(cache.glob("*.tmp"))


def test_a_file_that_is_gone_or_changed_is_a_failed_read_and_not_a_bad_sample(tmp_path: Path) -> None:
    """Such a failure may pass, or not show elsewhere: it is no function of the sample's coordinates."""
    data = write(tmp_path / "data", "a/1.jpg", "a/2.jpg", "a/3.jpg", "a/4.jpg")
    source = open_source(FolderSource(path=data))
    (data / "a/1.jpg").unlink()
    (data / "a/2.jpg").write_bytes(b"another length")
    (data / "a/3.jpg").unlink()
    os.mkfifo(data / "a/3.jpg")
    with pytest.raises(FileNotFoundError):
        source.read(0)
    with pytest.raises(OSError, match=r"14 bytes, 7 then.*touch"):
        source.read(1)
    with pytest.raises(OSError, match="not a regular file"):
        source.read(2)
    assert source.read(3).data == b"a/4.jpg"


def test_a_link_to_nothing_is_a_sample_whose_read_fails(tmp_path: Path) -> None:
    data = write(tmp_path / "data", "a/1.jpg")
    (data / "a/0.jpg").symlink_to("nowhere")
    (data / "a/self.jpg").symlink_to("self.jpg")
    source = open_source(FolderSource(path=data))
    assert names_of(source) == ["a/0.jpg", "a/1.jpg", "a/self.jpg"]
    for index in (0, 2):
        with pytest.raises(OSError, match=r"0\.jpg|self\.jpg"):
            source.read(index)


def test_links_to_folders_are_followed_and_a_loop_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "data", "a/1.jpg")
    write(tmp_path / "elsewhere", "2.jpg")
    (data / "b").symlink_to(tmp_path / "elsewhere")
    assert names_of(open_source(FolderSource(path=data))) == ["a/1.jpg", "b/2.jpg"]
    (data / "a/up").symlink_to(data)
    assert "loop" in refusal(FolderSource(path=data))


def test_an_empty_file_is_a_sample_of_no_bytes(tmp_path: Path) -> None:
    data = write(tmp_path / "data", "a/1.jpg")
    (data / "a/1.jpg").write_bytes(b"")
    assert open_source(FolderSource(path=data)).read(0).data == b""


def test_a_folder_without_samples_is_refused_with_the_way_out(tmp_path: Path) -> None:
    assert "nothing there" in refusal(FolderSource(path=tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    assert "no folder in it" in refusal(FolderSource(path=tmp_path / "empty"))
    assert "1 images without a class folder" in refusal(FolderSource(path=write(tmp_path / "loose", "1.jpg")))
    assert "add images" in refusal(FolderSource(path=write(tmp_path / "other", "a/1.jpg", "b/notes.txt")))
    assert "a file" in refusal(FolderSource(path=tmp_path / "loose" / "1.jpg"))
    nothing = SplitByHash(part="held_out", held_out=1e-12)
    assert "split" in refusal(FolderSource(path=write(tmp_path / "split", "a/1.jpg"), split=nothing))


def test_a_cache_that_can_not_be_written_says_which_variable_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "XDG_CACHE_HOME" in refusal(FolderSource(path=write(tmp_path / "data", "a/1.jpg")))


@given(
    st.lists(st.binary(min_size=1, max_size=12), unique=True, max_size=60), st.floats(0.01, 0.99), st.text(max_size=3)
)
def test_a_split_gives_each_sample_to_one_side_and_moves_no_other(
    names: list[bytes], held_out: float, salt: str
) -> None:
    train = SplitByHash(part="train", held_out=held_out, salt=salt)
    judged = SplitByHash(part="held_out", held_out=held_out, salt=salt)
    for name in names:
        assert 0.0 <= unit_hash(name, salt) < 1.0
        assert is_on_side(name, train) != is_on_side(name, judged)


def test_a_split_holds_out_about_its_share_and_keeps_all_classes(tmp_path: Path) -> None:
    data = write(tmp_path / "data", *(f"{name}/{number}.jpg" for name in "ab" for number in range(300)))
    sides = [open_source(FolderSource(path=data, split=SplitByHash(part=part))) for part in ("train", "held_out")]
    assert sorted(names_of(sides[0]) + names_of(sides[1])) == names_of(open_source(FolderSource(path=data)))
    assert sides[0].classes == sides[1].classes == ("a", "b")
    assert 80 < len(sides[1]) < 160


def manifest(folder_path: Path, text: str, *files: str) -> ManifestSource:
    folder_path.mkdir(exist_ok=True)
    write(folder_path, *files)
    path = folder_path / "list.csv"
    path.write_bytes(text.encode())
    return ManifestSource(path=path)


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "with a BOM"])
def test_a_manifest_takes_its_rows_in_any_order_and_its_columns_by_name(tmp_path: Path, mark: str) -> None:
    text = mark + 'label,x,path\r\ndog,0,b/2.jpg\r\n"cat",0,"a, ""1"".jpg"\r\n\r\ndog,1,b/2.jpg\r\n'
    source = open_source(manifest(tmp_path, text, 'a, "1".jpg', "b/2.jpg"))
    assert names_of(source) == ['a, "1".jpg', "b/2.jpg", "b/2.jpg"]
    assert source.classes == ("cat", "dog")
    assert [source.read(index).label for index in range(3)] == [0, 1, 1]
    assert source.read(1).data == b"b/2.jpg"


def test_number_labels_are_the_classes_themselves(tmp_path: Path) -> None:
    source = open_source(manifest(tmp_path, "path,label\n1.jpg,7\n2.jpg,10\n", "1.jpg", "2.jpg"))
    assert tuple(map(str, range(11))) == source.classes
    assert [source.read(index).label for index in range(2)] == [7, 10]


def test_a_manifest_may_name_files_anywhere(tmp_path: Path) -> None:
    """It is the user's own list."""
    write(tmp_path / "elsewhere", "1.jpg")
    text = f"path,label\n../elsewhere/1.jpg,a\n{tmp_path}/elsewhere/1.jpg,b\n"
    source = open_source(manifest(tmp_path / "data", text))
    assert [source.read(index).data for index in range(2)] == [b"1.jpg", b"1.jpg"]


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("", 1, "no columns"),
        ("path,label\n", 0, "at least one row"),
        ("file,label\n1.jpg,a\n", 1, "'path'"),
        ("path,label,path\n1.jpg,a,1.jpg\n", 1, "2 of them"),
        ("path,label\n1.jpg,a\n2.jpg,b\n", 3, "No such file"),
        ("path,label\n1.jpg,\n", 2, "class name or number"),
        ("path,label\n,a\n", 2, "empty path"),
        ("path,label\n.,a\n", 2, "no regular file"),
        ("path,label\n1.jpg\n", 2, "2 values"),
        ("path,label\n1.jpg,99999999999\n", 0, "65536"),
        ('path,label\n"1.jpg,a\n', 2, "unexpected end"),
        ("path,label\n1\x00.jpg,a\n", 2, "embedded null"),
    ],
)
def test_a_wrong_manifest_is_refused_at_its_line(tmp_path: Path, text: str, line: int, expected: str) -> None:
    config = manifest(tmp_path, text, "1.jpg")
    refused = refusal(config)
    assert expected in refused
    assert refused.startswith(f"{config.path}:{line}" if line else f"{config.path}")


def test_every_wrong_row_is_named_up_to_twenty(tmp_path: Path) -> None:
    rows = "".join(f"{number}.jpg,a\n" for number in range(30))
    assert refusal(manifest(tmp_path, "path,label\n" + rows)).count("No such file") == 20


@pytest.mark.usefixtures("settled")
def test_a_changed_manifest_is_noticed_at_the_next_start(tmp_path: Path) -> None:
    config = manifest(tmp_path, "path,label\n1.jpg,a\n", "1.jpg", "2.jpg")
    assert len(open_source(config)) == 1
    config.path.write_text("path,label\n1.jpg,a\n2.jpg,a\n")
    assert len(open_source(config)) == 2
