"""A batch that is made again is the batch that it was.

In:  what was recorded of a step, the batch that has arrived for it now.
Out: nothing, or a RunFailed that says in what they differ.
"""

from __future__ import annotations

from pipeline.errors import RunFailed
from pipeline.run_history import Recorded
from trainer.batch import Batch


def require_equal(recorded: Recorded, batch: Batch, *, then: str, now: str) -> None:
    """RunFailed unless the digests are equal. `then`, `now`: the workers' fingerprints, "" where none is known."""
    if recorded.digest == batch.digest:
        return
    if recorded.recipe != batch.recipe:
        cause = "another recipe stands at this step: timeline.jsonl is not the one that attempt ran under"
    elif then and now and then != now:
        cause = "the workers' libraries are others: install the versions that the run was begun with"
    else:
        cause = "the source's bytes have changed under equal names, or a plug-in draws from outside its coordinates"
    raise RunFailed(
        f"step {batch.step}, made again, is not the batch that attempt {recorded.attempt} trained on\n"
        f"  recorded: digest {recorded.digest}, recipe {recorded.recipe}, workers {then or 'unknown'}\n"
        f"  now:      digest {batch.digest}, recipe {batch.recipe}, workers {now or 'unknown'}\n"
        f"  cause:    {cause}\n"
        "  to go on: undo that; or leave what came later behind, with --from STEP --branch"
    )
