"""What a process that is forked from this one must not hold.

In:  a holder of files or sockets that are this process's own.
Out: its `let_go_in_child`, called in every forked child while it is in use here.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class _Holds(Protocol):
    def let_go_in_child(self) -> None: ...


_in_use: weakref.WeakSet[_Holds] = weakref.WeakSet()


def let_go_in_children(holder: _Holds) -> None:
    """From now on a process that is forked from this one lets go of it, until `hold_no_more`."""
    _in_use.add(holder)


def hold_no_more(holder: _Holds) -> None:
    """It is given up here: its numbers may be of other files from now on."""
    _in_use.discard(holder)


def _let_go_in_child() -> None:
    for holder in list(_in_use):
        holder.let_go_in_child()
    _in_use.clear()  # a child of the child has nothing to let go of: the numbers may be of other files by then


# A user's DataLoader, model or multiprocessing may fork this process at any time.
os.register_at_fork(after_in_child=_let_go_in_child)
