"""`headrace bench --health`: what watching gradients costs, from outside and by its own clock, beside the bounds.

In:  a number of rounds, of torch threads.
Out: a table a model, one sentence a bound; maybe a JSON file with every pair of steps.
Never fails because a bound is missed: the numbers are there to be read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer.health.cost import BOUNDS, Cost, Estimate, Subject, agrees, holds, measure, subjects, use_threads

_HOW = """\
The same training twice in one process, with equal batches, step beside step: without gradient health and with it, the
other way round in the next pair. own: by health's own clock in these steps. outside: (with - without) / without, taken
within a pair, by the round's median step; of all pairs the median, and the interval that holds the true median with
95 %. Deep steps were taken every 8th step; shares are for the intervals that `auto` chose. unresolved: by its own
clock the bound holds, and the noise from outside reaches beyond it; more --rounds narrow it down.
{clock}"""
_CLOCKS = {
    True: "One torch thread; the clock is that thread's own, so that other processes' turns don't count.",
    False: "Several torch threads; the clock is the wall's, and other processes' work is noise in it.",
}


def bench_health(
    *, num_rounds: int, num_threads: int, json_file: Path | None, console: Console, chosen: Sequence[Subject] = ()
) -> list[Cost]:
    """Measures and prints; `chosen`: the models, those of the benchmark if empty."""
    costs = []
    with use_threads(num_threads):
        for subject in chosen or subjects():
            with console.status(subject.name) as status:
                cost = measure(subject, num_rounds=num_rounds, report=status.update)
            _print(cost, console)
            costs.append(cost)
    console.print(_HOW.format(clock=_CLOCKS[num_threads == 1]), soft_wrap=True, highlight=False)
    if json_file is not None:
        json_file.write_text(json.dumps([dataclasses.asdict(cost) for cost in costs], indent=1))
    return costs


def _print(cost: Cost, console: Console) -> None:
    intervals = f"light steps every {cost.auto.light_every}, deep steps every {cost.auto.deep_every}"
    title = f"{cost.name}, {cost.num_tensors} tensors; {intervals}"
    table = Table(title=title, title_justify="left")
    for column in ("what", "bound", "own", "outside", "95 %", "agree", "holds"):
        table.add_column(column, no_wrap=True)
    for part, text, own, outside in (
        ("light", "always on", cost.own_light_share, cost.light_share),
        ("deep", "deep steps", cost.own_deep_share, cost.deep_share),
    ):
        bound = BOUNDS[part]
        table.add_row(
            text,
            f"{bound:.0%}",
            f"{own:.2%}",
            f"{outside.value:.2%}",
            _interval(outside),
            "yes" if agrees(own, outside) else "no",
            holds(own, outside, bound),
        )
    console.print(table)
    with_ms, without_ms = 1e3 * cost.alone_s * cost.ratio.value, 1e3 * cost.alone_s
    console.print(
        f"a step takes {without_ms:.2f} ms without, {with_ms:.2f} ms with it: ratio {cost.ratio.value:.4f} "
        f"({cost.ratio.low:.4f} to {cost.ratio.high:.4f}); weights afterwards "
        f"{'equal' if cost.are_weights_equal else 'DIFFER, which is a defect'}",
        soft_wrap=True,
        highlight=False,
    )
    console.print(f"health's own report: {cost.auto}\n", soft_wrap=True, highlight=False)


def _interval(outside: Estimate) -> str:
    return f"{outside.low:.1%} to {outside.high:.1%}"
