"""A study's page: one self-contained HTML file.

In:  the study's fields, the records of its runs, their judgements, what is known of the machine.
Out: the page's text.
Writes no number of its own: all come from the records.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.study import Cell, ClaimSection, StudyConfig
from trainer.figures import svg_of
from trainer.pages import render, trusted
from trainer.study_claim_figures import draw_claim
from trainer.study_claims import Judgement, gets_nothing, has_blown_up, mean_and_spread, measured
from trainer.study_figures import draw_heat_maps, draw_profiles, view_of
from trainer.study_records import Depth, RunRecord

STYLES = {"holds": "holds", "does not hold": "fails", "mixed": "mixed", "not tested": ""}


def study_page(
    study: StudyConfig,
    records: Sequence[RunRecord],
    judgements: Sequence[Judgement],
    *,
    facts: str,
    details: Sequence[tuple[str, str]],
    chance_loss: float,
) -> str:
    """The page; `facts`: a line below the heading; `details`: how it was done, name by name."""
    view = view_of(study)
    overview = None
    if view is not None:
        fixed = " and ".join(study.label(axis, name) for axis, name in view.fixed.items())
        overview = {
            "says": _overview_text(study, fixed),
            "heat_maps": _svg(draw_heat_maps(study, view, records, chance_loss), "heat"),
            "profiles": _svg(draw_profiles(study, view, records), "profiles"),
        }
    return render(
        "study.html",
        title=study.title or f"Study {study.name}",
        about=study.about,
        facts=facts,
        claims=[_claim(study, one, records, chance_loss, place) for place, one in enumerate(judgements)],
        overview=overview,
        details=details,
        settings=_settings(study),
        axes=list(study.axes),
        cells=[_cell(study, cell, records, chance_loss) for cell in study.cells()],
    )


def _overview_text(study: StudyConfig, fixed: str) -> str:
    return (
        f"{f'With {fixed}. ' if fixed else ''}Mean over {len(study.seeds)} seeds ± the standard deviation between "
        "them. Left, at the first step: by how many powers of ten the norm of the gradient changes in a layer on its "
        "way to the input; blue shrinks (vanishing), red grows. Middle and right, after the last step."
    )


def _claim(
    study: StudyConfig, one: Judgement, records: Sequence[RunRecord], chance_loss: float, place: int
) -> dict[str, Any]:
    figure = draw_claim(study, one, records, chance_loss)
    return {
        "says": one.claim.says,
        "answer": one.answer,
        "style": STYLES[one.answer],
        "finding": one.finding,
        "rule": one.rule,
        "because": one.claim.because,
        "compared": _compared(study, one.claim),
        "figure": _svg(figure, f"claim{place}") if figure is not None else "",
    }


def _compared(study: StudyConfig, claim: ClaimSection) -> str:
    after = " and ".join(study.label(claim.axis, name) for name in claim.after)
    text = f"{claim.axis}: {study.label(claim.axis, claim.before)} against {after}"
    for axis, names in claim.where.items():
        text += f", where {axis} is {' or '.join(study.label(axis, name) for name in names)}"
    return f"{text}; equal seeds, all else equal"


def _svg(figure: Any, name: str) -> Any:
    return trusted(svg_of(figure, name))


def _settings(study: StudyConfig) -> list[dict[str, str]]:
    rows = []
    for axis, settings in study.axes.items():
        for name, setting in settings.items():
            changes = [f"{path}: {json.dumps(value, ensure_ascii=False)}" for path, value in setting.set.items()]
            if setting.weights_std:
                changes.append(f"weights normal with std {setting.weights_std}")
            rows.append({"axis": axis, "label": study.label(axis, name), "changes": ", ".join(changes) or "none"})
    return rows


def _cell(study: StudyConfig, cell: Cell, records: Sequence[RunRecord], chance_loss: float) -> dict[str, Any]:
    runs = [run for run in records if run.cell == cell]
    blown_up = [run for run in runs if has_blown_up(run, study, chance_loss)]
    whole = [run for run in runs if run not in blown_up] or runs
    counts: Mapping[str, int] = {
        name: sum(name in run.verdicts for run in runs)
        for name in dict.fromkeys(name for run in runs for name in run.verdicts)
    }
    return {
        "labels": [study.label(axis, name) for axis, name in cell.items()],
        "numbers": [
            _slopes([measured(run, "first") for run in runs]),
            _slopes([measured(run, "last") for run in runs]),
            _mean([run.max_grad_norm for run in runs], "{:.2g}"),
            _mean([run.last_loss for run in whole], "{:.3g}"),
            _percent(whole, lambda run: run.judged[-1].train_accuracy),
            _percent(whole, lambda run: run.judged[-1].held_out_accuracy),
            _percent(runs, lambda run: run.clipped_share),
            f"{len(blown_up)} of {len(runs)}",
        ],
        "verdicts": ", ".join(name if count == len(runs) else f"{name} ({count})" for name, count in counts.items()),
    }


def _slopes(depths: Sequence[Depth | None]) -> str:
    known = [depth for depth in depths if depth is not None]
    if known and all(gets_nothing(depth) for depth in known):
        return "no gradient"
    return _mean([depth.backward_slope for depth in known], "{:+.3f}")


def _mean(values: Sequence[float | None], form: str) -> str:
    mean, spread = mean_and_spread([value for value in values if value is not None])
    if mean != mean:
        return "-"
    return form.format(mean) + (f" ± {form.replace('+', '').format(spread)}" if spread == spread else "")


def _percent(runs: Sequence[RunRecord], read: Callable[[RunRecord], float]) -> str:
    return _mean([100 * read(run) for run in runs], "{:.0f}")
