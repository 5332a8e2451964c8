"""The study behind ``recast-ref study``: where anchors help, where they hurt, and what to run. In reading order:

* ``cells``: what is run, as data: parts, each a question, and their cells;
* ``worlds`` and ``answers``: what the log shows, what the reward pays for, and what an answer looks like;
* ``bases``: how strong the policy is at the start; ``arms``, ``training``: what is learned from there;
* ``outcomes``: what each prompt comes to; ``bootstrap``: how sure a mean of them is;
* ``running``: every cell on all cores, learning rates tuned, one file a run;
* ``table``, ``figures``, ``report``: one CSV, and all that is made from it; ``console``: the terminal.
"""
