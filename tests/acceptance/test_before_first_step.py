"""Before the first step: who waits says for what, can be asked and stopped; what can't work is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.embedded import Streams, open_streams
from pipeline.config import dump_job, load_job
from pipeline.errors import EXIT_STOPPED_RESUMABLE, EXIT_USER_INPUT, ConfigError
from pipeline.operator import OperationRefused, Operator, new_operation
from pipeline.run_folder import RunFolder
from pipeline.service_messages import AskStop
from tests.home import Home
from tests.processes import Headrace, lines_of, run_headrace, write_job

CHAIN: list[Any] = ["HorizontalFlip", "Normalize", "ToTensorV2"]


@pytest.fixture(name="home")
def _home() -> Iterator[Home]:
    home = Home()
    yield home
    home.remove()


def small_job(folder: Path, arrays: Path, **fields: Any) -> Path:
    return write_job(
        folder,
        name="small",
        sources={"arrays": {"kind": "arrays", "path": str(arrays)}},
        train={"source": "arrays", "chain": CHAIN, "batch_size": 20},
        **{"model": {"kind": "mlp", "width": 8, "depth": 1}, "device": "cpu", "torch_threads": 1, **fields},
    )


@pytest.mark.long
def test_a_trainer_that_came_first_says_what_it_waits_for_and_can_be_asked_and_stopped(
    tmp_path: Path, arrays: Path, home: Home
) -> None:
    """On the terminal, once each; in status; and a stop before the first step leaves a run to go on with."""
    job, run_dir, endpoint = small_job(tmp_path, arrays), tmp_path / "run", f"ipc://{home.path}/d"
    for name in ("operator", "pipeline", "workers"):
        (tmp_path / name).mkdir()

    def operate(*arguments: str) -> Any:
        whole = (*arguments, "--run-dir", str(run_dir))
        return run_headrace(*whole, folder=tmp_path / "operator", environment=home.environment)

    def said() -> str:
        return (tmp_path / "command.err").read_text()

    train = ("train", job, "--run-dir", run_dir, "--connect", endpoint)
    with Headrace(*train, folder=tmp_path, environment=home.environment) as trainer:
        # When there is no dispatcher
        trainer.wait_until(lambda: "waiting for the dispatcher at" in said(), "the first note")
        screen = operate("status")
        assert screen.code == 0, screen.err
        for part in (f"no answer from {endpoint}", "waiting for the dispatcher at", f"kill -TERM {trainer.pid}"):
            assert part in " ".join(screen.out.split())
        # When there is no worker
        listen = ("pipeline", "--listen", endpoint)
        with Headrace(*listen, folder=tmp_path / "pipeline", environment=home.environment) as dispatcher:
            trainer.wait_until(lambda: "no worker is connected" in said(), "the second note")
            asked = operate("stop")
            assert asked.code == 0, asked.err
            assert "stops before its next step" in asked.out
            ended = trainer.finish()
            assert ended.code == EXIT_STOPPED_RESUMABLE, ended.err
            assert ended.err.count("waiting for the dispatcher at") == 1, ended.err
            assert ended.err.count(f"the dispatcher at {endpoint} answers") == 1, ended.err
            assert ended.err.count("no worker is connected") == 1, ended.err
            # Then it is gone on with
            source = ("--source", f"arrays={arrays}", "--num", "1", "--connect", endpoint)
            with Headrace("workers", *source, folder=tmp_path / "workers", environment=home.environment) as pool:
                resumed = run_headrace(*train, "--resume", folder=tmp_path, environment=home.environment)
                assert resumed.code == 0, resumed.err
                assert len(lines_of(run_dir / "metrics.jsonl")) == 5
                for service in (pool, dispatcher):
                    service.process.terminate()
                    assert service.finish().code == 0


@pytest.mark.parametrize(
    ("num_workers", "chain", "expected"),
    [
        (1, [{"RandomCrop": {"height": 1000, "width": 1000}}, *CHAIN], "RandomCrop"),
        (0, [{"RandomCrop": {"height": 1000, "width": 1000}}, *CHAIN], "RandomCrop"),
        (0, ["HorizontalFlip"], "float32"),
    ],
)
def test_an_evaluation_that_cannot_work_is_refused_before_the_first_step(
    tmp_path: Path, arrays: Path, num_workers: int, chain: list[Any], expected: str
) -> None:
    """And not after an epoch, with no checkpoint."""
    job = load_job(small_job(tmp_path, arrays, eval={"source": "arrays", "chain": chain}))
    with (
        RunFolder.create(tmp_path / "run", dump_job(job.config)) as folder,
        pytest.raises(ConfigError, match=rf"job\.yaml:\d+: eval\.chain(.|\n)*{expected}"),
    ):
        Streams(job, num_workers, folder)


@pytest.mark.long
def test_the_probe_of_an_evaluation_is_asked_for_once(tmp_path: Path, arrays: Path) -> None:
    """The passes after it need not wait for a worker to try the chain, and train batches come meanwhile."""
    job = load_job(small_job(tmp_path, arrays, eval={"source": "arrays", "chain": CHAIN}))
    with (
        RunFolder.create(tmp_path / "run", dump_job(job.config)) as folder,
        open_streams(job, 1, folder) as streams,
    ):
        assert job.eval is not None
        assert list(streams._batch_specs["eval"]) == [job.eval.digest]
        assert next(iter(streams.train)).step == 0
        assert sum(batch.stop - batch.start for batch in streams.evaluate()) == 100


@pytest.mark.long
def test_a_stream_in_somebodys_own_program_is_not_stopped_by_an_operator(
    tmp_path: Path, arrays: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loop is not ours to end, and the operator is told so."""
    for name, value in home.environment.items():
        monkeypatch.setenv(name, value)
    with open_streams(load_job(small_job(tmp_path, arrays)), 1) as streams:
        services = streams._services
        assert services is not None
        with (
            Operator(services.dispatcher) as operator,
            pytest.raises(OperationRefused, match=r"a program of the user's own: stop that one") as refused,
        ):
            operator.done(AskStop(operation=new_operation()), lambda: None)
        assert refused.value.exit_code == EXIT_USER_INPUT
        assert next(iter(streams.train)).step == 0
