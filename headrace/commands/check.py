"""`headrace check FILE...`: is it right, and if not, everything that is wrong with it.

In:  job, study and chain files, plug-in modules for the chain files.
Out: `ok FILE (job|chain, digest)` or `ok FILE (study, runs)` a good file on stdout, every problem of the others on
     stderr; exit 2 if any.
Opens the job's sources (which indexes them, as the job would) and imports its model's factory, but decodes no image:
what a chain makes of them is probed when the job starts. Data that isn't here is an error, as it would be for the job;
everything else is told all the same. A study's base job is looked at likewise, and so is each setting that changes its
batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.config import examine_job, examined_job, kind_of_file, load_chain
from pipeline.config_job import Job
from pipeline.config_recipes import JobRecipes
from pipeline.errors import EXIT_USER_INPUT, ConfigError, Problem
from pipeline.extras import WORKERS, importing_extras
from pipeline.factory import load_factory
from pipeline.plan import Role, first_entries, open_job_source, require_equal_classes, section_of
from pipeline.recipe import Recipe
from pipeline.sources import Source
from pipeline.study_file import load_study
from pipeline.user_code import load_module, plugin_name, source_digest
from trainer.trainable import chain_problems, class_problems, setting_problems

if TYPE_CHECKING:
    from workers.chain import CompiledChain


def check(
    files: Annotated[list[Path], typer.Argument(help="Job, study and chain files.", show_default=False)],
    plugins: Annotated[
        list[str] | None,
        typer.Option(help="Module (or file.py) with your own transforms, for chain files; a job names its own."),
    ] = None,
    own_loop: Annotated[
        bool, typer.Option("--own-loop", help="The job feeds a loop of your own: pass what only training refuses.")
    ] = False,
) -> None:
    """Validates job, study and chain files and prints every error, with file:line.

    A job's sources are opened (their index, no image) and its model's factory is imported: a folder that isn't on this
    machine is an error beside the others. What the chain makes of the images is tried when the job starts.
    """
    # Here and not at the top: importing albumentations takes a second that `headrace --help` should not wait for.
    with importing_extras("headrace check", WORKERS):
        import workers.chain  # noqa: F401
    is_any_wrong = False
    for file in files:
        try:
            print(f"ok {file} ({_check_one(file, plugins or [], is_trained=not own_loop)})")
        except ConfigError as error:
            is_any_wrong = True
            typer.echo(str(error), err=True)
    if is_any_wrong:
        raise typer.Exit(EXIT_USER_INPUT)


def _check_one(file: Path, plugins: list[str], *, is_trained: bool = True) -> str:
    """What the file is, with its recipes' digests; a ConfigError with every problem if it is wrong."""
    match kind_of_file(file):
        case "study":
            return _check_study(file)
        case "job":
            return _check_job(file, is_trained=is_trained)
        case "chain":
            return _check_chain(file, plugins)


def _check_chain(file: Path, plugins: list[str]) -> str:
    from workers.chain import compile_chain

    folder = Path.cwd()
    chain = load_chain(file)
    digests = {plugin_name(name): source_digest(name, folder) for name in plugins}
    recipe = Recipe(chain=chain, plugins=digests)
    compile_chain(recipe, _load_plugins(plugins, folder))
    return f"chain, recipe {recipe.digest}"


def _check_study(file: Path) -> str:
    config = load_study(file, check_stream=_check_job).config
    num_runs = config.num_cells * len(config.seeds)
    return f"study, {num_runs} runs of {config.num_cells} cells, {len(config.claims)} claims"


def _check_job(file: Path, overrides: Sequence[str] = (), *, is_trained: bool = True) -> str:
    from workers.chain import compile_chain

    examined = examine_job(file, overrides)
    problems = list(examined.problems)
    try:
        modules = _load_plugins(examined.recipes.plugins, file.resolve().parent)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    recipes = _named_recipes(examined.recipes)
    compiled: list[tuple[Recipe, CompiledChain]] = []
    for recipe in recipes.values():
        try:
            compiled.append((recipe, compile_chain(recipe, modules)))
        except ConfigError as error:
            problems.extend(problem for problem in error.problems if problem not in problems)
    if examined.config is None:
        raise ConfigError(problems)
    sources: dict[str, Source] = {}
    for name in examined.config.sources:
        try:
            sources[name] = open_job_source(examined.config, str(file), examined.source_lines.get(name, 0), name)
        except ConfigError as error:
            problems.extend(error.problems)
    if examined.recipes.train is not None:
        job = examined_job(file, examined)
        problems.extend(_plan_problems(job, sources))
        problems.extend(_training_problems(job, sources, compiled) if is_trained else ())
    if problems:
        # A chain of both streams is wrong once.
        raise ConfigError(sorted(dict.fromkeys(problems), key=lambda problem: (problem.file, problem.line)))
    require_equal_classes(examined.config, str(file), sources.__getitem__)
    counts = [f"{name}: {len(source)} samples, {len(source.classes)} classes" for name, source in sources.items()]
    parts = [f"{name} {recipe.digest}" for name, recipe in recipes.items()]
    return ", ".join(["job", *parts, *counts])


def _plan_problems(job: Job, sources: Mapping[str, Source]) -> Iterator[Problem]:
    """Streams that have no batch, a model that isn't there."""
    for role in _roles(job):
        source = sources.get(section_of(job.config, role).source)
        try:
            if source is not None:
                first_entries(job, role, len(source))
        except ConfigError as error:
            yield from error.problems
    try:
        load_factory(job)
    except ConfigError as error:
        yield from error.problems


def _training_problems(
    job: Job, sources: Mapping[str, Source], compiled: Iterable[tuple[Recipe, CompiledChain]]
) -> Iterator[Problem]:
    """What `headrace train` refuses before its first step, as far as it can be told without an image."""
    from workers.chain_normalize import may_make_floats

    yield from setting_problems(job)
    source = sources.get(job.config.train.source)
    yield from class_problems(job, source.classes) if source is not None else ()
    for recipe, chain in compiled:
        is_float = bool(chain.finish.scale) or may_make_floats(recipe.chain.nodes)
        dtype = "float32" if is_float else f"uint{recipe.decode.depth}"
        yield from chain_problems(recipe, dtype, is_channels_first=chain.finish.channels_first)


def _roles(job: Job) -> list[Role]:
    return ["train", "eval"] if job.eval is not None else ["train"]


def _named_recipes(recipes: JobRecipes) -> dict[str, Recipe]:
    """All that could be read, in the order in which the job uses them."""
    named = {"recipe": recipes.train}
    named |= {f"from epoch {later.from_epoch}": later.recipe for later in recipes.later}
    named |= {"eval": recipes.eval}
    return {name: recipe for name, recipe in named.items() if recipe is not None}


def _load_plugins(references: list[str] | tuple[str, ...], folder: Path) -> dict[str, ModuleType]:
    return {plugin_name(reference): load_module(reference, folder) for reference in references}
