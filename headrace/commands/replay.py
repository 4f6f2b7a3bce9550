"""`headrace replay RUN --step N`: a past batch, made again from the run folder and looked at.

In:  a run's folder, a step it trained on, the sources its job names.
Out: a table of samples with what was applied to each; whether the batch has its recorded digest (exit 1 if not); a
     contact sheet. Works while the run goes on, too: nothing in its folder is locked or written.
Never trains, never loads a checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import ConfigError, Problem
from pipeline.extras import REPORT, WORKERS, importing_extras, require_extras

if TYPE_CHECKING:
    from headrace.past_run import PastStep
    from headrace.remake import RemadeBatch


def replay(
    run: Annotated[Path, typer.Argument(help="The run's folder.", metavar="RUN", show_default=False)],
    step: Annotated[int, typer.Option(min=0, help="Number of the batch, from 0.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Draw a contact sheet into this PNG file.")] = None,
    compare: Annotated[
        Path | None, typer.Option(help="A chain file: the sheet shows the same coordinates under it, too.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=256, help="How many of the batch's samples are shown.")] = 16,
    source: Annotated[
        list[str] | None, typer.Option(help="NAME=DIR: where a source lies now, if it was moved. Repeatable.")
    ] = None,
    base: Annotated[Path, typer.Option(help="The folder that plug-in modules are looked for in.")] = Path(),
) -> None:
    """Remake the batch of a past step, verify its digest and show what was applied to each sample."""
    if compare is not None and out is None:
        raise _refusal("--compare", "--out FILE.png beside it", "none", "add one: the comparison is a picture")
    if out is not None:
        require_extras("headrace replay --out", REPORT)
        if not out.absolute().parent.is_dir():
            raise _refusal("--out", "a file in a folder that exists", str(out), f"mkdir -p {out.parent}")
    # Imported late: torch is not needed, but albumentations is, and takes a second.
    with importing_extras("headrace replay", WORKERS):
        from headrace.remake import Remaker
    from headrace.past_run import look_up
    from headrace.replay_report import as_table, verdict
    from pipeline.config import load_chain
    from pipeline.recipe import Recipe

    past = look_up(run, step, source or [], base)
    other = None
    if compare is not None:
        recipe = past.recipe
        other = Recipe(chain=load_chain(compare), decode=recipe.decode, plugins=recipe.plugins)
    remaker = Remaker(past.job, past.source, past.timeline, base, past.quarantined)
    made = remaker.remake(past.batch, past.recipe, samples)
    compared = remaker.remake(past.batch, other, samples) if other is not None else None
    _print(past, made, as_table(made))
    if out is not None:
        from headrace.replay_sheet import as_sheet
        from headrace.sheet import write_png

        write_png(as_sheet(past, made, compared, compare), out)
        shown, size = len(made.samples), past.batch.stop - past.batch.start
        more = "" if shown == size else f" (--samples {size} shows all {size})"
        print(f"wrote {out}: {shown} samples{more}")
    verdict(past, made)


def _print(past: PastStep, made: RemadeBatch, table: object) -> None:
    from rich.console import Console

    batch = past.batch
    place = f"step {batch.step}  epoch {past.epoch}  positions {batch.start} to {batch.stop - 1}"
    console = Console()
    console.print(
        f"{place}  recipe {batch.recipe}  chain {past.chain_name}", soft_wrap=True, highlight=False, markup=False
    )
    console.print(table)
    left = batch.stop - batch.start - len(made.samples)
    if left:
        print(f"and {left} more samples")


def _refusal(path: str, expected: str, got: str, way_out: str) -> ConfigError:
    return ConfigError(Problem(file="command line", line=0, path=path, expected=expected, got=got, way_out=way_out))
