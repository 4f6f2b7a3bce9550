"""Gradient health: what a model's gradients do while it trains, what that means, and what to do about it.

records.py    what was measured, what it means            (plain values)
robust.py     slopes and running levels that outliers don't move
detectors.py  one table: thresholds, sources, fixes
rules_*.py    measured values -> findings
judge.py      findings -> verdicts with a life
overhead.py   what watching costs, and how often it may look
-- everything above runs without torch --
layers.py, measure.py, trace.py, transfer.py    hooks, reductions, one transfer a step
monitor.py    `GradientHealth(model, optimizer)`: one call a step in anybody's loop
observer.py   the same for `trainer.step.Stepper`
suite*.py     healthy and faulty trainings for calibration, as data
"""
