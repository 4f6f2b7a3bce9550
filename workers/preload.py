"""What a pool's fork server does once, so that each worker forked from it need not.

In:  nothing; the fork server imports this module before its first fork.
Out: the worker's libraries, imported, and this machine's fingerprint, computed: both are inherited. The fork server
     dies with its pool, which multiprocessing does not see to while workers live: they hold its pipe's other end.
Never imported elsewhere: it works on import, which is all that a fork server can be asked for.
"""

from __future__ import annotations

import signal

import workers.worker  # noqa: F401 (imported for the workers to come)
from workers.environment import die_with_parent
from workers.fingerprint import fingerprint

die_with_parent()
signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for the pool, from a worker's first moment on
fingerprint()
