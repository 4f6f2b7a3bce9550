"""`headrace report RUN`: the page of a run, as one HTML file.

In:  a run's folder, going on or ended; the sources its job names, for pictures of its samples.
Out: RUN/report.html, or the file of `--out`. Reads the folder only, whatever goes on in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="The run's folder.", metavar="RUN", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The page's file; report.html in the run's folder if none.")] = None,
    samples: Annotated[
        int, typer.Option(min=0, max=64, help="Samples shown of each recipe, made again from the sources; 0: none.")
    ] = 8,
    source: Annotated[
        list[str] | None, typer.Option(help="NAME=DIR: where a source lies now, if it was moved. Repeatable.")
    ] = None,
    base: Annotated[Path, typer.Option(help="The folder that plug-in modules are looked for in.")] = Path(),
) -> None:
    """Write the page of a run: curves, layers, verdicts, recipes, samples and settings, in one file."""
    from trainer.report import require_libraries, write_report

    require_libraries()
    from headrace.report_samples import sample_sheets

    path = write_report(run, out, sample_sheets(run, source or [], base, samples))
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
