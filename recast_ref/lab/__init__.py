"""The experiment behind ``recast-ref compare``, in reading order:

* ``worlds``, with ``synthetic``, ``minionerec``, ``recbole``, ``reading`` and ``semantic_ids``: who interacted with what, as pairs
  of a history and the next item;
* ``policy`` and ``rollouts``: a small transformer that can only name items, and how it makes groups;
* ``arms``: what each arm learns from a group; ``training``: the update that all share;
* ``evaluation``, ``audit``, ``memory``, ``cost``: what is measured;
* ``experiment``, with ``workers``, ``checkpoints`` and ``locks``: every arm with every seed on all cores, resumable;
* ``summary``, ``console``, ``report``: the table, the terminal and the HTML file.
"""
