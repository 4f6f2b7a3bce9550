"""What a pool's fork server does once, so that each worker forked from it need not.

In:  nothing; the fork server imports this module before its first fork.
Out: the worker's libraries, imported, and this machine's fingerprint, computed: both are inherited.
Never imported elsewhere: it works on import, which is all that a fork server can be asked for.
"""

from __future__ import annotations

import workers.worker  # noqa: F401 (imported for the workers to come)
from workers.fingerprint import fingerprint

fingerprint()
