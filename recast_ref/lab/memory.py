"""How much memory an update needs at its peak, counted tensor by tensor, so that the figure is the same on every run."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of the tensors created inside the ``with`` block that are alive at once.

    ``peak`` is the largest such sum. Tensors that existed before do not count; neither does scratch space inside a
    single operator.

    Example:
        >>> with PeakBytes() as memory:
        ...     x = torch.zeros(1000)      # 4,000 bytes
        ...     y = x + 1                  # 8,000
        ...     del x                      # 4,000
        ...     z = y[:10]                 # a view: still 4,000
        >>> memory.peak
        8000
    """

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):
            self._known.add(storage)  # not made by an operator in this block, or counted already
        out = func(*args, **kwargs)
        for storage in _storages(out):
            if storage not in self._known:
                self._known.add(storage)
                size = storage.nbytes()
                weakref.finalize(storage, self._free, size)
                self.alive += size
        self.peak = max(self.peak, self.alive)
        return out

    def _free(self, size):
        self.alive -= size


def _storages(tree):
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
