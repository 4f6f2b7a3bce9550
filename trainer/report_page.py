"""The run's page put together: figures to SVG, pictures to data URIs, words to the template.

In:  a run's folder, sheets of its samples.
Out: the page as text.
Needs matplotlib and jinja2, which `trainer/report.py` looks for; writes nothing.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.figures import Figure, drawing, svg_of
from trainer.health.detectors import DETECTORS
from trainer.pages import render, trusted
from trainer.report_depth import MAX_ROWS, layer_rows, map_figure, profile_figure
from trainer.report_figures import WIDTH_IN, step_figure
from trainer.report_history import History, read_history
from trainer.report_layers import QUANTITIES
from trainer.report_sheets import SampleSheet
from trainer.report_text import (
    counted_rows,
    environment_rows,
    event_rows,
    facts,
    moment,
    recipe_rows,
    span_text,
    standing,
    verdict_cards,
    verdict_words,
)


def page(folder: Path, samples: Sequence[SampleSheet]) -> str:
    """The whole page; ConfigError if the folder is none of a run, RunFailed if a file of it is damaged."""
    history = read_history(folder)
    layers = history.layers
    return render(
        "report.html",
        name=history.name,
        folder=str(folder),
        made=moment(time.time()),
        standing=standing(history),
        span=span_text(history),
        facts=facts(history),
        verdict_words=verdict_words(history),
        cards=verdict_cards(history),
        **_pictures(history),
        steps_per_point=f"{history.series.steps_per_bin:,}" if history.series else "1",
        layers=_layers_words(history),
        layer_rows=layer_rows(layers.last) if layers else [],
        num_layers=len(layers.names) if layers else 0,
        max_layer_rows=MAX_ROWS,
        why_no_layers=_why_no_layers(history),
        recipes=recipe_rows(history),
        num_recipes=len(history.recipes),
        events=event_rows(history),
        counted=counted_rows(history),
        sheets=[_sheet(sheet) for sheet in samples],
        job_text=history.job_text,
        chains=history.chain_texts,
        environment=environment_rows(history),
        branches=history.branches,
        overhead=str(history.health.get("summary", "")),
    )


def _pictures(history: History) -> dict[str, Any]:
    """None, or no picture, where there is nothing to draw."""
    series, layers = history.series, history.layers
    with drawing():
        return {
            "steps_svg": _svg(step_figure(history, series), "steps") if series else None,
            "profiles": [_svg(profile_figure(layers, each), f"profile-{each}") for each in QUANTITIES]
            if layers
            else [],
            "maps_svg": _svg(map_figure(layers, WIDTH_IN), "maps") if layers else None,
        }


def _svg(figure: Figure, name: str) -> Any:
    return trusted(svg_of(figure, name))


def _layers_words(history: History) -> dict[str, Any]:
    layers = history.layers
    if layers is None:
        return {}
    return {
        "num_samples": f"{layers.num_samples:,}",
        "steps": ", ".join(f"{sample.step:,}" for sample in layers.profiles),
        "last": f"{layers.last.step:,}",
        "slope": f"{DETECTORS['VANISH_BWD'].thresholds['warn_slope'].value:+.2f}".replace("-", "\N{MINUS SIGN}"),
    }


def _why_no_layers(history: History) -> str:
    if history.series is None:
        return "No step was recorded yet, so there is nothing to draw."
    config = history.events.started.get("config")
    section = config.get("health") if isinstance(config, dict) else None
    if isinstance(section, dict) and section.get("enabled") is False:
        return "No layer was measured: the job says health.enabled: false."
    return "No layer was measured: the folder has no line of layers.jsonl for the steps of this run."


def _sheet(sheet: SampleSheet) -> dict[str, Any]:
    pictures = [
        {"sample": picture, "original": _data_uri(picture.original), "augmented": _data_uri(picture.augmented)}
        for picture in sheet.pictures
    ]
    return {"sheet": sheet, "pictures": pictures}


def _data_uri(content: bytes) -> str:
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
