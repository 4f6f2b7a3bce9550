"""What this worker can't serve because of how it was started, though another worker may.

In and out: nothing; the one exception that `workers/streams.py` and `workers/chain.py` raise for it.
"""

from __future__ import annotations

from pipeline.errors import ConfigError


class CannotServe(ConfigError):
    """A source or plug-in that the stream needs is missing here, or is not the trainer's: no fault of the stream."""
