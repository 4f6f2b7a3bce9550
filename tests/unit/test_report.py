"""report.html: every run has a page, whatever its folder lacks, and the page needs nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.report_process import make_report
from pipeline.errors import ConfigError, RunFailed
from pipeline.json_lines import encode_line
from pipeline.run_lock import RunLock
from trainer.report import write_report
from trainer.report_figures import MAX_VERDICT_ROWS, step_figure
from trainer.report_history import read_history
from trainer.report_sheets import SamplePicture, SampleSheet
from trainer.report_text import standing, verdict_cards, verdict_words

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb")
LAYERS = ("stem", "middle", "head")
PIXEL = b"\x89PNG not really, only its first letters matter here"


class Run:
    """A run's folder, made line by line."""

    def __init__(self, path: Path, *, name: str = "small") -> None:
        self.path = path
        (path / "chains").mkdir(parents=True)
        (path / "job.yaml").write_text(f"name: {name}\ntrain: {{epochs: 2}}\n")
        entries = [
            {"start": 0, "step": 0, "recipe": RECIPES[0], "batch_size": 8, "file": "chains/first.yaml"},
            {"start": 80, "step": 10, "recipe": RECIPES[1], "batch_size": 8, "file": "chains/second.yaml"},
        ]
        self.append("timeline", from_step=0, entries=entries, why="start", files={})
        (path / "chains" / f"{RECIPES[0]}.yaml").write_text("- HorizontalFlip\n")
        self.event("training_started", step=0, device="cpu", step_settings="fp32, clip all: norm to 1", config={})

    def append(self, file: str, *, attempt: int = 1, **record: Any) -> None:
        with (self.path / f"{file}.jsonl").open("ab") as lines:
            lines.write(encode_line({"attempt": attempt, **record}))

    def event(self, action: str, **fields: Any) -> None:
        self.append("journal", time_s=1_000_000.0, action=action, **fields)

    def steps(self, first: int, stop: int, *, attempt: int = 1, loss: float = 1.0, bad: tuple[int, ...] = ()) -> None:
        for step in range(first, stop):
            is_bad = step in bad
            self.append(
                "metrics",
                attempt=attempt,
                step=step,
                position=8 * step,
                epoch=step // 10,
                recipe=RECIPES[step >= 10],
                digest="d",
                loss="nan" if is_bad else loss,
                grad_norm="inf" if is_bad else 2.0,
                lr=0.1,
                clipped=not is_bad,
                clipped_norm="nan" if is_bad else 1.0,
                loss_scale=1.0,
                skipped=is_bad,
                num_samples=8,
                num_correct=4,
            )

    def layers(self, step: int, delta_rms: list[Any], **fields: Any) -> None:
        columns = {
            "name": LAYERS,
            "kind": ["Linear"] * 3,
            "activation": ["ReLU", "ReLU", ""],
            "sample_std": [1.0, 0.5, 0.25],
            "delta_rms": delta_rms,
            "num_units": [4, 4, 4],
            "weight_norm": [1.0, 1.0, 0.0],
            "grad_norm": [3.0, 4.0, 0.0],
            "update_norm": [1e-3, 1e-3, 1e-3],
        }
        self.append("layers", step=step, was_skipped=False, layers=columns, **fields)

    def health(self, *verdicts: dict[str, Any], **changes: Any) -> None:
        overhead = {
            "measured_light_share": 0.005,
            "measured_deep_share": 0.02,
            "light_share": 0.004,
            "deep_share": 0.01,
        }
        content = {"version": 1, "step": 20, "verdicts": verdicts, "overhead": overhead, "summary": "it costs little"}
        (self.path / "health.json").write_bytes(msgspec.json.encode({**content, **changes}))

    def page(self, samples: tuple[SampleSheet, ...] = ()) -> str:
        return write_report(self.path, None, samples).read_text()


def verdict(**fields: Any) -> dict[str, Any]:
    return {
        "number": 1,
        "id": "NONFINITE",
        "kind": "",
        "severity": "CRITICAL",
        "life": "confirmed",
        "layers": ["stem.weight"],
        "first_step": 4,
        "last_step": 6,
        "resolved_at": None,
        "num_hits": 3,
        "evidence": {"loss": "nan", "lr": 0.125},
        "thresholds": {"scaler_skips": 3.0},
        "fix": "lower the learning rate",
        "confidence": 1.0,
        "traces": [
            {
                "step": 5,
                "loss": "nan",
                "grad_norm": "inf",
                "batch": {"epoch": 0, "start": 40, "stop": 48, "recipe": RECIPES[0]},
                "worst_samples": [{"index": 2, "loss": "inf", "id": "417"}],
            }
        ],
        **fields,
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with everything a page can show, in names that would be markup if a page let them; its page is written."""
    run = Run(tmp_path_factory.mktemp("report") / "run", name='"<script>alert(1)</script>"')
    run.steps(0, 20, bad=(5,))
    run.layers(0, [1e-3, 1e-2, 1e-1])
    run.layers(16, [1e-3, 0.0, "inf"])
    run.health(verdict(), verdict(number=2, id="CLIP", severity="WARN", fix="<img src=x>", layers=["<b>stem</b>"]))
    run.event("evaluated", step=20, loss=0.5, accuracy=0.75, num_samples=8)
    run.event("training_ended", step=20, checkpoint="step-00000020")
    pictures = tuple(
        SamplePicture(
            name="<i>cat</i>",
            class_name="cats",
            original=PIXEL,
            augmented=b"\xff\xd8",
            size="8x8 to 8x8",
            is_small=is_small,
            applied=("<u>Flip</u>",),
        )
        for is_small in (True, False)
    )
    gone = SampleSheet(recipe=RECIPES[1], title="From step 10", note="", problem="<s>gone</s>")
    write_report(
        run.path, None, (SampleSheet(recipe=RECIPES[0], title="From step 0", note="", pictures=pictures), gone)
    )
    return run


@pytest.fixture(scope="module")
def page(whole: Run) -> str:
    return (whole.path / "report.html").read_text()


def test_a_whole_run_has_all_its_parts(page: str) -> None:
    """Curves, three profiles, maps, verdicts, recipes, chain, samples, settings."""
    assert "finished: 20 steps, 1 CRITICAL verdict open" in page
    assert 5 == page.count("<svg")
    words = ("Gradient norm", "before clipping", "after clipping", "Forward signal", "Backward signal", "Update ratio")
    words += ("first.yaml", "second.yaml", "- HorizontalFlip", "75.0 %", "2.5 %", "1.4 % in the long run", "cpu")
    assert [] == [word for word in words if word not in page]


def test_a_verdict_says_what_to_do_and_how_to_see_its_samples(whole: Run, page: str) -> None:
    """Evidence beside threshold, the fix, and the command that shows the step's batch."""
    command = f"headrace replay {whole.path} --step 5 --out step-5.png"
    words = ("lower the learning rate", "scaler_skips", "3 steps", "0.125", "stem.weight", "417 (inf)", command)
    assert [] == [word for word in words if word not in page]


def test_nothing_of_a_run_becomes_markup(page: str) -> None:
    """Names, fixes and samples come from files and users."""
    assert re.search(r"<(script|i|u|b|s)>|<img src=x", page) is None
    assert [] == [tag for tag in ("script", "i", "u", "b", "s") if f"&lt;{tag}&gt;" not in page]


def test_a_table_shows_numbers_and_no_methods(page: str) -> None:
    """A template's `row.update` is dict.update: keys that are methods of a dict have to be taken by `[...]`."""
    assert "built-in" not in page
    assert " object at 0x" not in page


def test_the_page_fetches_nothing(page: str) -> None:
    """Pictures are in it, links lead into it; a browser is told to allow nothing else."""
    places = re.findall(r'(?:src|href)="([^"]*)"', page) + re.findall(r"url\(([^)]*)\)", page)
    assert len(places) > 10
    assert [] == [place for place in places if not place.startswith(("#", "data:image/"))]
    assert "data:image/jpeg" in page
    assert "default-src 'none'" in page


def test_ids_of_the_page_are_unique(page: str) -> None:
    """Each picture names its clip paths and markers alike; one that meets another's would be drawn with them."""
    names = re.findall(r'\bid="([^"]*)"', page)
    assert len(names) > 10
    assert len(set(names)) == len(names)


def test_no_verdicts_are_said_plainly(run: Run) -> None:
    run.health()

    assert "No verdicts: in 20 steps no detector found anything to say." == verdict_words(read_history(run.path))


def test_verdicts_of_the_journal_stand_in_for_a_missing_health_json(run: Run) -> None:
    """Those of steps that a later attempt did again were never in this run."""
    run.steps(0, 20)
    run.event("verdict", step=4, change="opened", verdict=verdict(life="open"))
    run.event("verdict", step=15, change="opened", verdict=verdict(number=2, id="EXPLODE"))
    run.steps(10, 20, attempt=2)

    assert ["NONFINITE"] == [card.title for card in verdict_cards(read_history(run.path))]


def test_what_health_json_keeps_no_more_the_journal_has(run: Run) -> None:
    """Only the last resolved verdicts are kept; a page is of the whole run."""
    run.steps(0, 20)
    run.event("verdict", step=4, change="opened", verdict=verdict(number=1, resolved_at=None))
    run.event("verdict", step=9, change="resolved", verdict=verdict(number=1, resolved_at=9))
    run.event("verdict", step=15, change="opened", verdict=verdict(number=2, id="EXPLODE", severity="WARN"))
    run.health(verdict(number=2, id="EXPLODE", resolved_at=18), num_dropped=1)

    verdicts = read_history(run.path).verdicts
    assert [(1, 9), (2, 18)] == [(one["number"], one["resolved_at"]) for one in verdicts]


def test_cards_begin_with_what_is_open_and_worst(run: Run) -> None:
    """An old, resolved alarm is not what a reader came for."""
    run.health(
        verdict(number=1, id="CLIP", resolved_at=9),
        verdict(number=2, id="INPUT", severity="INFO"),
        verdict(number=3, id="EXPLODE", kind="spike", severity="WARN"),
        verdict(number=4),
    )

    titles = [card.title for card in verdict_cards(read_history(run.path))]

    assert ["NONFINITE", "EXPLODE / spike", "INPUT", "CLIP"] == titles


def test_the_timeline_has_room_for_what_is_open_and_worst(run: Run) -> None:
    """Many small alarms of a run's beginning leave a row to the one that ended it; rows are in the order of time."""
    run.steps(0, 20)
    spikes = [
        verdict(number=number, id="EXPLODE", kind="spike", severity="WARN", resolved_at=number + 5)
        for number in range(1, MAX_VERDICT_ROWS + 4)
    ]
    run.health(*spikes, verdict(number=99))
    history = read_history(run.path)
    assert history.series is not None

    labels = [label.get_text() for label in step_figure(history, history.series).axes[-1].get_yticklabels()]

    rows = ["EXPLODE/spike"] * (MAX_VERDICT_ROWS - 1)
    assert ["recipe", *rows, "NONFINITE", "and 4 more"] == labels


def test_a_folder_without_anything_but_its_job_has_a_page(tmp_path: Path) -> None:
    """What a run that failed at once leaves, or one of an earlier version."""
    (tmp_path / "job.yaml").write_text("name: [this is, no job\n")

    page = write_report(tmp_path).read_text()

    said = ("no step done", "No step was recorded yet", "were not watched", "The timeline is empty", "journal is empty")
    assert [] == [words for words in said if words not in page]


def test_a_run_that_was_not_watched_says_why_it_has_no_layers(run: Run) -> None:
    """A page of few steps is drawn for it, without profiles."""
    run.steps(0, 3)
    run.event("training_started", step=0, config={"health": {"enabled": False}})

    page = run.page()

    assert "No layer was measured: the job says health.enabled: false." in page
    assert 1 == page.count("<svg")


def test_metrics_of_an_earlier_version_are_drawn_as_far_as_they_go(run: Run) -> None:
    """A line with little more than a loss; nothing was clipped as far as anybody knows."""
    run.append("metrics", step=0, recipe=RECIPES[0], digest="d", loss=1.0)

    page = run.page()

    assert "Loss" in page
    assert "Gradient norm, all" not in page


def test_a_run_says_how_it_stands(run: Run) -> None:
    """Cut off, going on, stopped: with the command to go on where there is one."""
    run.steps(0, 3)
    to_go_on = f"headrace train {run.path}/job.yaml --run-dir {run.path} --resume"
    cut_off = standing(read_history(run.path))
    lock = RunLock(run.path)
    going_on = standing(read_history(run.path))
    lock.release()
    run.event("stopped", step=3, why="SIGTERM")
    stopped = standing(read_history(run.path))
    run.event("failed", step=3, reason="the disk is full")
    failed = standing(read_history(run.path))

    assert ("cut off: 3 steps done, no word of its end", to_go_on) == (cut_off.text, cut_off.to_go_on)
    assert ("going on: 3 steps done when this page was made", "") == (going_on.text, going_on.to_go_on)
    assert ("stopped by SIGTERM: 3 steps done", to_go_on) == (stopped.text, stopped.to_go_on)
    assert ("failed: 3 steps done; the disk is full", to_go_on) == (failed.text, failed.to_go_on)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected: the folder of a run\n  got:      no such folder"):
        write_report(tmp_path / "nowhere")


def test_a_place_that_cannot_be_written_is_refused(run: Run, tmp_path: Path) -> None:
    """And the page that was there stays."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="no such folder"):
        write_report(run.path, tmp_path / "nowhere" / "page.html")
    with pytest.raises(ConfigError, match="a place where a file can be written"):
        write_report(run.path, tmp_path / "folder")
    assert [] == list(tmp_path.glob("**/.partial-*"))


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_a_missing_library_is_named_with_its_remedy(library: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    for name in [
        name for name in sys.modules if name.startswith(("trainer.report_", "trainer.figures", "trainer.pages"))
    ]:
        monkeypatch.delitem(sys.modules, name)

    with pytest.raises(ConfigError, match=rf"(?s){library}.*pip install 'headrace\[report\]'"):
        write_report(run.path)


def test_a_page_is_made_without_torch() -> None:
    """It is made where a run's folder was copied to."""
    code = "import sys, trainer.report_page; print({'torch', 'workers', 'cv2'} & {*sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "set()" == out.strip()


def test_a_page_that_cannot_be_made_is_a_reason_not_a_crash(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has just trained for days goes on to its end."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RunFailed, match=r"(?s)its page was not made\nit ended with code 1"):
        make_report(run.path)

    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(RunFailed, match="its page was not made: "):
        make_report(run.path)
