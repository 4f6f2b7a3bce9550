"""A run's folder: one writer, whole lines, whole checkpoints."""

import errno
import functools
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import cli
from pipeline import checkpoint_folder, json_lines
from pipeline.config import load_chain
from pipeline.errors import ConfigError, RunFailed
from pipeline.json_lines import JsonLines, encode_line, read_lines
from pipeline.recipe import Chain, ChainNode, Recipe
from pipeline.run_folder import RunFolder
from pipeline.run_history import read_changes
from pipeline.timeline import TimelineChange, TimelineEntry
from tests.sizes import cases

plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
record_lists = st.lists(
    st.dictionaries(st.text().filter(lambda key: key not in ("crc", "attempt")), plain_values, max_size=4), max_size=6
)


def append_all(path, records, attempt=1):
    lines = JsonLines(path, attempt=attempt, is_synced=False)
    for record in records:
        lines.append(record)
    lines.close()


@settings(max_examples=cases(100))
@given(records=record_lists)
def test_what_was_appended_is_read_back(records, tmp_path_factory):
    path = tmp_path_factory.mktemp("lines") / "some.jsonl"
    append_all(path, records, attempt=3)
    assert read_lines(path) == [{"attempt": 3, **record} for record in records]


@settings(max_examples=cases(100))
@given(records=record_lists, tail=st.binary(max_size=40), data=st.data())
def test_a_file_cut_anywhere_reads_as_the_lines_that_are_whole_and_goes_on_from_there(
    records, tail, data, tmp_path_factory
):
    """A crash may leave part of a line, and after a power cut also bytes that were never written."""
    path = tmp_path_factory.mktemp("lines") / "some.jsonl"
    append_all(path, records)
    content = path.read_bytes()
    num_kept = data.draw(st.integers(0, len(content)))
    num_whole = content[:num_kept].count(b"\n")
    path.write_bytes(content[:num_kept] + tail.replace(b"\n", b""))
    if tail.replace(b"\n", b"") and content[num_kept : num_kept + 1] == tail[:1]:
        return  # the random tail may by chance complete the line
    whole = [{"attempt": 1, **record} for record in records[:num_whole]]
    assert read_lines(path) == whole
    append_all(path, [{"after": "crash"}], attempt=2)
    assert read_lines(path) == [*whole, {"attempt": 2, "after": "crash"}]


@given(record=st.dictionaries(st.text(), plain_values, min_size=1), place=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed(record, place, bit):
    line = bytearray(encode_line(record))
    line[place % len(line)] ^= 1 << bit
    assert json_lines._decode_line(bytes(line)) is None


def test_a_damaged_line_before_an_intact_one_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "some.jsonl"
    append_all(path, [{"step": 0}, {"step": 1}, {"step": 2}])
    path.write_bytes(path.read_bytes().replace(b'"step":1', b'"step":7'))
    with pytest.raises(RunFailed, match=r"some\.jsonl:2: line 2 is damaged\n  expected: .*line 3 is intact"):
        read_lines(path)


@pytest.mark.parametrize("is_synced", [True, False])
def test_a_damaged_last_line_is_an_error_where_each_line_was_synced_and_left_out_where_none_was(is_synced, tmp_path):
    """What was synced before it counted holds, whatever became of it; a power cut leaves anything behind a sync."""
    path = tmp_path / "some.jsonl"
    append_all(path, [{"step": 0}, {"step": 1}, {"step": 2}])
    damaged = path.read_bytes().replace(b'"step":1', b'"step":7').replace(b'"step":2', b'"step":7')
    path.write_bytes(damaged)
    if is_synced:
        with pytest.raises(RunFailed, match=r"some\.jsonl:2: line 2 is damaged"):
            read_lines(path, is_synced=True)
        with pytest.raises(RunFailed, match=r"some\.jsonl:2: line 2 is damaged"):
            JsonLines(path, attempt=2, is_synced=True)
        assert path.read_bytes() == damaged
    else:
        lines = JsonLines(path, attempt=2, is_synced=False)
        lines.close()
        assert (lines.num_lines, lines.num_damaged) == (1, 2)
        append_all(path, [{"step": 1}], attempt=2)
        assert [line["step"] for line in read_lines(path)] == [0, 1]


@pytest.mark.parametrize("is_synced", [True, False])
def test_a_torn_end_is_cut_by_the_line_that_takes_its_place_and_not_before(is_synced, tmp_path):
    """Who opened the file may still refuse to go on with it, and then leaves it as it was."""
    path = tmp_path / "some.jsonl"
    append_all(path, [{"step": 0}, {"step": 1}])
    torn = path.read_bytes()[:-1]
    path.write_bytes(torn)
    lines = JsonLines(path, attempt=2, is_synced=is_synced)
    lines.sync()
    assert (lines.num_lines, lines.num_damaged, path.read_bytes()) == (1, 0, torn)
    lines.append({"step": 7})
    lines.close()
    assert [line["step"] for line in read_lines(path, is_synced=is_synced)] == [0, 7]


def test_a_line_is_one_write_and_a_synced_file_is_synced_before_append_returns(tmp_path, monkeypatch):
    calls = []
    for name in ("write", "fsync"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, real=real, name=name: (calls.append(name), real(*args))[1])
    synced = JsonLines(tmp_path / "synced.jsonl", attempt=1, is_synced=True)
    unsynced = JsonLines(tmp_path / "unsynced.jsonl", attempt=1, is_synced=False)
    synced.append({"a": "x" * 100_000})
    unsynced.append({"a": 1})
    assert calls == ["write", "fsync", "write"]
    synced.close()
    unsynced.close()


def test_a_full_disk_is_told_and_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "some.jsonl"
    lines = JsonLines(path, attempt=1, is_synced=False)
    lines.append({"step": 0})
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: real(descriptor, line[:5]))  # as a filling disk does
    with pytest.raises(RunFailed, match="the disk is full"):
        lines.append({"step": 1})
    monkeypatch.undo()
    lines.append({"step": 2})
    lines.close()
    assert [line["step"] for line in read_lines(path)] == [0, 2]


def test_a_failed_write_in_one_thread_cuts_no_line_of_another(tmp_path, monkeypatch):
    """The training loop and the receivers write into one journal; a disk may fill up at any moment."""
    path = tmp_path / "some.jsonl"
    lines = JsonLines(path, attempt=1, is_synced=False)
    real = os.write

    def write(descriptor, line):
        written = real(descriptor, line[:5] if b"fails" in line else line)
        time.sleep(0)  # lets other threads run, as a slow disk does
        return written

    monkeypatch.setattr(os, "write", write)

    def append(thread):
        for number in range(200):
            if number % 2:
                lines.append({"who": thread, "number": number})
            else:
                with pytest.raises(RunFailed, match="the disk is full"):
                    lines.append({"fails": 1})

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(append, range(4)))
    monkeypatch.undo()
    lines.close()
    kept = sorted((line["who"], line["number"]) for line in read_lines(path))
    assert kept == [(thread, number) for thread in range(4) for number in range(1, 200, 2)]


def test_a_file_that_does_not_exist_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == []


# --- the folder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exists", [True, False])
def test_a_new_folder_holds_what_was_written_to_it(exists, tmp_path):
    path = tmp_path / "runs" / "mine"
    if exists:
        path.mkdir(parents=True)
    with RunFolder.create(path, "name: mine\n") as folder:
        entry = TimelineEntry(start=0, step=0, recipe="abc", batch_size=4)
        folder.append_timeline(TimelineChange(from_step=0, entries=(entry,), why="start"))
        folder.append_quarantine({"index": 7})
        folder.append_event("started", workers=2)
        folder.append_metrics({"step": 0, "loss": 1.5})
    assert (path / "job.yaml").read_text() == "name: mine\n"
    (change,) = read_changes(path)
    assert (change.from_step, change.entries, change.why) == (0, (entry,), "start")
    assert read_lines(path / "quarantine.jsonl") == [{"attempt": 1, "index": 7}]
    assert read_lines(path / "metrics.jsonl") == [{"attempt": 1, "step": 0, "loss": 1.5}]
    _, _, event = read_lines(path / "journal.jsonl")
    assert (event["action"], event["workers"]) == ("started", 2)
    assert not list(path.rglob(".*"))


def test_the_folder_of_an_earlier_run_is_refused_and_untouched(tmp_path):
    with RunFolder.create(tmp_path / "run", "first\n"):
        pass
    with pytest.raises(ConfigError, match="the folder of an earlier run"):
        RunFolder.create(tmp_path / "run", "second\n")
    assert (tmp_path / "run" / "job.yaml").read_text() == "first\n"


def test_a_folder_with_other_files_is_refused_and_untouched(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="other files"):
        RunFolder.create(tmp_path, "job\n")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_second_trainer_is_refused_and_told_who_holds_the_folder(tmp_path):
    with RunFolder.create(tmp_path / "run", "job\n"), pytest.raises(ConfigError) as refused:
        RunFolder.create(tmp_path / "run", "job\n")
    assert f"process {os.getpid()}" in str(refused.value)
    assert f"headrace stop --run-dir {tmp_path}/run" in str(refused.value)


def test_a_child_process_does_not_keep_the_lock(tmp_path):
    """Workers outlive a killed trainer for a moment: the folder must be free at once."""
    folder = RunFolder.create(tmp_path / "run", "job\n")
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, close_fds=False) as child:
        folder.close()
        with pytest.raises(ConfigError, match="the folder of an earlier run"):
            RunFolder.create(tmp_path / "run", "job\n")
        child.communicate(b"\n")


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    """A user's model may fork helpers that outlive a killed trainer."""
    folder = RunFolder.create(tmp_path / "run", "job\n")
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(read_end, 1)
        os._exit(0)
    try:
        os.close(folder._lock._descriptor)  # as a SIGKILL does
        folder._lock._descriptor = -1
        with RunFolder.resume(tmp_path / "run"):
            pass
    finally:
        os.write(write_end, b"x")
        os.waitpid(child, 0)
        os.close(read_end)
        os.close(write_end)


def test_a_folder_that_can_not_be_made_is_told_with_its_reason_and_leaves_nothing(tmp_path, monkeypatch):
    """Also the folders above it, which were made on the way."""
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "above" / "run"):
        with pytest.raises(ConfigError, match="file is a file\n  to go on: name another with --run-dir") as caught:
            RunFolder.create(path, "")
    assert str(caught.value).startswith(f"{tmp_path}/file/above/run\n  expected: a place where")
    with pytest.raises(ConfigError, match="File name too long"):
        RunFolder.create(tmp_path / "above" / ("x" * 300), "")
    make = Path.mkdir

    def forbidden(path, *arguments, **named):
        if path.name == "run":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        make(path, *arguments, **named)

    (tmp_path / "above").mkdir()
    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(ConfigError, match=r"Permission denied: .*/above/run\n  to go on: name a folder that you may"):
        RunFolder.create(tmp_path / "above" / "run", "")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "above", tmp_path / "file"]
    (tmp_path / "above").rmdir()
    monkeypatch.setattr(os, "open", lambda path, *_: forbidden(Path(path).parent))
    monkeypatch.setattr(Path, "mkdir", make)
    with pytest.raises(ConfigError, match="Permission denied"):
        RunFolder.create(tmp_path / "above" / "run", "")
    assert list(tmp_path.rglob("*")) == [tmp_path / "file"]


def test_a_folder_is_discarded_only_before_the_first_step(tmp_path):
    for num_steps in (0, 1):
        with RunFolder.create(tmp_path / "run", "job\n") as folder:
            for step in range(num_steps):
                folder.append_metrics({"step": step})
            folder.discard_if_unused()
        assert (tmp_path / "run").exists() == (num_steps > 0)


def test_a_recipes_file_reads_as_a_chain_of_equal_digest(tmp_path):
    children = (ChainNode(name="Blur", params={"blur_limit": [3, 5]}), ChainNode(name="RandomGamma"))
    nodes = (
        ChainNode(name="Resize", params={"height": 8, "width": 8, "p": 1e-7}),
        ChainNode(name="OneOf", params={"p": 0.5}, children=children, is_composition=True),
    )
    recipe = Recipe(chain=Chain(file="some/chain.yaml", nodes=nodes), plugins={"mine": "ab" * 32})
    with RunFolder.create(tmp_path / "run", "job\n") as folder:
        folder.write_recipe(recipe)
    chain = load_chain(tmp_path / "run" / "chains" / f"{recipe.digest}.yaml")
    assert Recipe(chain=chain, plugins=recipe.plugins).digest == recipe.digest


def test_a_checkpoint_is_whole_and_names_the_digest_of_each_file(tmp_path):
    with RunFolder.create(tmp_path / "run", "job\n") as folder:
        path = folder.write_checkpoint(200, {"model.pt": lambda file: file.write_bytes(b"abc") and None}, {"step": 200})
    assert path == tmp_path / "run" / "checkpoints" / "step-00000200"
    state = checkpoint_folder.read_state(path)
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert state == {"step": 200, "files_sha256": {"model.pt": abc}}
    assert sorted(each.name for each in path.parent.iterdir()) == ["step-00000200"]


def test_a_checkpoint_is_on_disk_before_its_name_and_its_name_before_the_one_it_replaces_goes(tmp_path, monkeypatch):
    """After a power cut there is one of them, whole: a rename that is not synced may be undone by it."""
    calls = []
    with RunFolder.create(tmp_path / "run", "job\n") as folder:
        write = {"model.pt": lambda file: file.write_bytes(b"abc") and None}
        folder.write_checkpoint(1, write, {"step": 1})

        def traced(name, real, *args):
            path = Path(args[0]) if isinstance(args[0], str | Path) else Path(os.readlink(f"/proc/self/fd/{args[0]}"))
            calls.append((name, path.name))
            return real(*args)

        for name in ("fsync", "rename"):
            monkeypatch.setattr(os, name, functools.partial(traced, name, getattr(os, name)))
        monkeypatch.setattr(shutil, "rmtree", lambda path, **_: calls.append(("rmtree", path.name)))
        checkpoint_folder.write_checkpoint(folder.checkpoints / "step-00000001", write, {"step": 1})
        monkeypatch.undo()
    partial = ".partial-step-00000001"
    assert calls[-5:] == [
        ("fsync", partial),
        ("rename", "step-00000001"),
        ("rename", partial),
        ("fsync", "checkpoints"),
        ("rmtree", ".replaced-step-00000001"),
    ]
    assert {("fsync", "model.pt"), ("fsync", ".partial-state.json")} <= set(calls[:-5])


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS])
def test_a_run_that_can_not_be_written_on_is_refused_with_words(error, tmp_path, monkeypatch):
    RunFolder.create(tmp_path / "run", "job\n").close()
    (tmp_path / "run/.partial-job.yaml").write_text("jo")

    def refuse(path, *_, **__):
        raise OSError(error, os.strerror(error), str(path))

    for name in ("open", "unlink"):  # at the lock; at what is tidied after it
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(ConfigError, match=rf"to be written on\n  got:      {os.strerror(error)}: .*run"):
                RunFolder.resume(tmp_path / "run")
    RunFolder.resume(tmp_path / "run").close()


def test_a_file_of_lines_that_can_not_be_opened_is_named(tmp_path, monkeypatch):
    append_all(tmp_path / "some.jsonl", [{"step": 0}])

    def refuse(path, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RunFailed, match=r"some\.jsonl: can't be written: Permission denied"):
        append_all(tmp_path / "some.jsonl", [])
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RunFailed, match=r"some\.jsonl: can't be read: Permission denied"):
        read_lines(tmp_path / "some.jsonl")


def test_a_checkpoint_that_fails_on_the_way_is_not_there(tmp_path):
    def fill_the_disk(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with RunFolder.create(tmp_path / "run", "job\n") as folder, pytest.raises(RunFailed, match="the disk is full"):
        folder.write_checkpoint(1, {"model.pt": fill_the_disk}, {})
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(("error", "is_defect"), [(errno.EACCES, False), (errno.EROFS, False), (errno.EBADF, True)])
def test_what_the_owner_of_a_file_refuses_ends_a_command_in_one_line(error, is_defect, monkeypatch, capsys):
    """Wherever it is met: no place wraps every error, and nobody needs a traceback for this one."""

    def refuse():
        raise OSError(error, os.strerror(error), "runs/mine/journal.jsonl")

    monkeypatch.setattr(cli, "_run", refuse)
    monkeypatch.setattr(cli, "_listen_for_signals", lambda: None)
    with pytest.raises(OSError if is_defect else SystemExit):
        cli.main()
    assert ("runs/mine/journal.jsonl" in capsys.readouterr().err) is not is_defect
