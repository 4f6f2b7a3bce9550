"""What a pool's fork server does once, so that each worker forked from it need not.

In:  nothing; the fork server imports this module before its first fork.
Out: the worker's libraries and the user's plug-ins, imported, and this machine's fingerprint, computed: all are
     inherited. The fork server dies with its pool, which multiprocessing does not see to while workers live: they hold
     its pipe's other end.
Never imported elsewhere: it works on import, which is all that a fork server can be asked for.

Plug-ins are loaded here so that a worker that takes a dead one's place runs the same code, though the user may have
edited the file since, or one that it imports. What fails to load is left to each worker, which says why.
"""

from __future__ import annotations

import contextlib
import signal

from pipeline.errors import HeadraceError
from pipeline.user_code import load_module
from workers.environment import die_with_parent
from workers.fork_server import plugins_to_preload

die_with_parent()
signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for the pool, from a worker's first moment on
with contextlib.suppress(ImportError):
    import workers.worker  # noqa: F401 (imported for the workers to come)
    from workers.fingerprint import fingerprint

    fingerprint()
plugins, base = plugins_to_preload()
for plugin in plugins:
    with contextlib.suppress(HeadraceError):
        load_module(plugin, base)
