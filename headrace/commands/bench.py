"""`headrace bench`: this pipeline, the raw limit and torch's DataLoader, interleaved in one run; or gradient health.

In:  a job file: its train chain, batch size and number of workers; with `--health` none.
Out: a table of results beside their targets, and maybe a JSON file with every window.
Never fails because a target is missed: the numbers are there to be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.errors import ConfigError, Problem
from pipeline.extras import DEMO, require_extras

if TYPE_CHECKING:
    from headrace.bench_report import Round
    from pipeline.config_job import Job

_HOW = """\
Counted: samples whose batch arrived in the trainer's process as normalised float tensors, one element of each batch
touched (raw limit: samples made and thrown away). Each window opens and closes with an arrival; start-up and the
first {ignore:g} s of a window, in which full buffers are emptied, are left out. Contenders take turns in every round;
while one is measured the others rest with full buffers. Ratios are taken within a round; the result is the median."""


def bench(
    job: Annotated[Path | None, typer.Argument(help="The job file.", metavar="JOB.yaml")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a window.")] = 8.0,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Windows for each contender, 5; with --health rounds of 8 steps, 20.")
    ] = None,
    ignore: Annotated[float, typer.Option(min=0.0, help="Seconds before a window that are not counted.")] = 2.0,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; the job's number if not given.")] = None,
    own_images: Annotated[bool, typer.Option(help="Use the job's own source instead of 500x375 JPEGs.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write every window to this file.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a field, as in slice_size=32.")] = None,
    health: Annotated[
        bool, typer.Option("--health", help="Measure what watching gradients costs instead; takes no job.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="With --health: torch threads.")] = 1,
) -> None:
    """Measure samples/s against the raw limit of the chain and against torch's DataLoader; or what health costs."""
    if health:
        from headrace.health_bench import bench_health

        bench_health(num_rounds=rounds or 20, num_threads=threads, json_file=json, console=Console())
        return
    if job is None:
        raise _no_job()
    from headrace.bench_run import measure_rounds, reseed_us, write_json
    from pipeline.config import load_job
    from pipeline.job import initial_workers

    console = Console()
    overrides = list(set_ or [])
    loaded = load_job(job, overrides)
    if not own_images:
        overrides.append(_instead_of_own_images(loaded))
        loaded = load_job(job, overrides)
    num_workers = workers or initial_workers(loaded.config)[0] or 1
    console.print(_describe(loaded, num_workers), soft_wrap=True, highlight=False)
    measured = measure_rounds(
        job, overrides, num_workers, num_rounds=rounds or 5, ignore_s=ignore, count_s=seconds, report=console.print
    )
    reseeding_us = reseed_us()
    _print(measured, reseeding_us, console)
    console.print(_HOW.format(ignore=ignore), soft_wrap=True, highlight=False)
    if json is not None:
        write_json(json, measured, reseeding_us)


def _no_job() -> ConfigError:
    return ConfigError(
        Problem(
            file="command line",
            line=0,
            path="JOB.yaml",
            expected="a job file",
            got="none",
            way_out="headrace bench configs/jobs/bench.yaml; or --health, which takes none",
        )
    )


def _instead_of_own_images(job: Job) -> str:
    """The override that puts the benchmark's images in the place of the job's train source."""
    name = job.config.train.source
    require_extras("headrace bench without --own-images", DEMO)
    from headrace.bench_images import bench_images
    from pipeline.index_file import cache_folder

    folder = bench_images(cache_folder().parent)
    return f"sources.{name}={{kind: folder, path: '{folder}'}}"


def _describe(job: Job, num_workers: int) -> str:
    train = job.config.train
    names = ", ".join(node.name for node in job.train.chain.nodes)
    images = job.config.sources[train.source].model_dump_json(exclude_defaults=True)
    return f"{num_workers} workers, batches of {train.batch_size}, chain {names}\nimages: {images}"


def _print(rounds: list[Round], reseeding_us: float, console: Console) -> None:
    from headrace import bench_report
    from headrace.bench_contenders import CONTENDERS

    table = Table(title="Results and targets", title_justify="left")
    for column in ("what", "target", "result", "lowest to highest", ""):
        table.add_column(column, no_wrap=column == "what")
    for row in bench_report.rows(rounds, reseeding_us):
        sign = "at least" if row.at_least else "below"
        table.add_row(
            row.name,
            f"{sign} {row.target:g} {row.unit}",
            f"{row.value:.3g} {row.unit}",
            f"{row.low:.3g} to {row.high:.3g}",
            "met" if row.is_met else "missed",
        )
    console.print(table)
    table = Table(title="Contenders", title_justify="left")
    for column in ("what", "samples/s", "lowest to highest", "CPU s for 1,000 samples", "worker RSS/PSS/USS, MiB"):
        table.add_column(column, no_wrap=column == "what")
    costs, memory = bench_report.cpu_costs(rounds), bench_report.worker_memory_mib(rounds)
    for name, (median, low, high) in bench_report.rates(rounds).items():
        cost = ", ".join(f"{part} {seconds:.2f}" for part, seconds in costs[name].items())
        used = memory[name]
        mib = f"{used['rss']:.0f}/{used['pss']:.0f}/{used['uss']:.0f}"
        table.add_row(CONTENDERS[name], f"{median:.0f}", f"{low:.0f} to {high:.0f}", cost, mib)
    console.print(table)
