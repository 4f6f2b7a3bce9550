"""What `headrace replay` says of a batch that was made again: a table and a verdict.

In:  a `PastStep`, the `RemadeBatch`.
Out: a rich table; RunFailed if the digest is another than the recorded one.
Never makes a sample, never draws.
"""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from headrace.applied_text import applied_name
from headrace.past_run import PastStep
from headrace.remake import RemadeBatch, RemadeSample
from pipeline.errors import RunFailed

MAX_CAUSE_CHARS = 120


def as_table(made: RemadeBatch) -> Table:
    """A row a sample: where it stands, which it is, what ran on it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("position", justify="right")
    table.add_column("sample", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("applied", overflow="fold")
    for sample in made.samples:
        name = "\n".join((sample.name, *replaced_lines(sample)))
        applied = ", ".join(map(applied_name, sample.applied)) or "nothing"
        # As Text: `scan[bold].png` is a file's name, not rich's markup.
        table.add_row(*map(Text, (str(sample.position), name, sample.class_name, applied)))
    return table


def replaced_lines(sample: RemadeSample) -> list[str]:
    """One line for each sample that could not stand here."""
    lines = []
    for number, (name, cause) in enumerate(sample.replaces):
        text = " ".join(cause.split())
        short = text if len(text) <= MAX_CAUSE_CHARS else text[: MAX_CAUSE_CHARS - 3] + "..."
        lines.append(f"{'in the place of' if number == 0 else 'nor could'} {name}: {short}")
    return lines


def verdict(past: PastStep, made: RemadeBatch) -> None:
    """Says that the batch is the recorded one; RunFailed, with what can be the cause, if it is not."""
    if made.digest == past.digest:
        print(f"digest {made.digest}: as recorded")
        return
    from workers.fingerprint import fingerprint

    here = fingerprint()
    causes = []
    if past.worker_fingerprint and past.worker_fingerprint != here:
        causes += ["other libraries or another CPU than the run's workers had:"]
        causes += [f"  run:  {past.worker_fingerprint}", f"  here: {here}"]
    elif past.worker_fingerprint:
        causes += ["not the libraries: they make what the run's workers made"]
    else:
        causes += [f"other libraries or another CPU than the run's workers had; here: {here}"]
    section = past.job.config.train
    causes += [f"samples of source {section.source!r} were rewritten with the same size (its fingerprint can't tell)"]
    causes += [f"a line of {past.run / 'metrics.jsonl'} or quarantine.jsonl was edited"]
    listed = "\n".join(f"    {cause}" for cause in causes)
    raise RunFailed(
        f"step {past.batch.step}: the batch made here is not the one that was trained on\n"
        f"  recorded:  {past.digest} (metrics.jsonl, attempt {past.attempt})\n"
        f"  made here: {made.digest}\n"
        f"  probable causes:\n{listed}"
    )
