"""recast-ref: group RL, repair and contrast for generative recommendation (ReCast, arXiv 2604.22169).

``recast_ref.reference`` is the readable PyTorch version, ``recast_ref.fast`` the same as C++ ops, ``recast_ref.auto`` whichever
there is. ``recast_ref.lab`` trains with them (extra ``lab``).
"""

__version__ = "0.1.0"
