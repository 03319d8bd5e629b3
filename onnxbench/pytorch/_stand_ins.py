"""Modules in place of other modules, for one thread, wherever those hang."""

from __future__ import annotations

import threading
import weakref
from functools import wraps
from typing import TYPE_CHECKING, Any

from onnxbench.pytorch import _patching

if TYPE_CHECKING:
    from onnxbench.pytorch.rewrite_context import RewriteContext

lock = threading.RLock()
"""Held while modules are put in place or taken away."""
_stand_ins: weakref.WeakKeyDictionary[Any, StandIn] = weakref.WeakKeyDictionary()


class StandIn:
    """A module in place of another one, wherever that hangs.

    Another thread that runs the same model finds the stand-in there, and its ``forward`` calls what hung there before.
    Contexts of two threads may end in any order, so what is below may itself be a stand-in that is taken away.
    """

    def __init__(self, context: RewriteContext, made: Any, below: Any) -> None:
        self.context, self.made, self.below = context, made, below
        self.slots: list[tuple[Any, str]] = []
        own = made.forward

        @wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = own if context in _patching.active.get() else self.below
            return call(*args, **kwargs)

        made.forward = forward
        _stand_ins[made] = self

    def hang(self, parent: Any, name: str) -> None:
        """Puts the module into a place."""
        parent._modules[name] = self.made
        self.slots.append((parent, name))

    def take_away(self) -> None:
        """Puts back what was there, or takes the module out from under those that were put there since."""
        with lock:
            for parent, name in self.slots:
                top = parent._modules.get(name)
                if top is self.made:
                    parent._modules[name] = self.below
                    continue
                above = _stand_ins.get(top)
                while above is not None and above.below is not self.made:
                    above = _stand_ins.get(above.below)
                if above is not None:
                    above.below = self.below
            _stand_ins.pop(self.made, None)
            vars(self.made).pop("forward", None)


def _visible(module: Any) -> Any:
    """Returns the module that hangs in a place as this thread sees it."""
    record = _stand_ins.get(module)
    while record is not None and record.context not in _patching.active.get():
        module = record.below
        record = _stand_ins.get(module)
    return module


def slots(root: Any) -> list[tuple[Any, str, Any]]:
    """Returns the places of modules, the deepest first: what holds one, under which name, and the module.

    So what is made of a module finds its submodules replaced. The root hangs nowhere: its place has no parent.
    """
    order: list[Any] = []
    seen: set[int] = set()
    pending = [(_visible(root), False)]
    while pending:
        module, is_done = pending.pop()
        if is_done:
            order.append(module)
        elif id(module) not in seen:
            seen.add(id(module))
            pending.append((module, True))
            pending += [(_visible(each), False) for each in module._modules.values() if each is not None]
    found = [
        (parent, name, _visible(each))
        for parent in order
        for name, each in list(parent._modules.items())
        if each is not None
    ]
    return [*found, (None, "", order[-1])]
