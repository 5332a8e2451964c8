"""ReCast inside the trainers that people have. Each is imported only on demand and names the extra that it needs.

1. ``sids``   SIDs in text and in token ids, and the trie of a catalogue
2. ``pairs``  from the rows of any trainer to the rows that its update keeps
3. ``trl``    TRL's ``GRPOTrainer`` (extra ``trl``); ``python -m recast_ref.trainers.trl_example`` shows it
4. ``verl``, ``verl_v1``  verl's trainers on Ray (extra ``verl``)
5. ``onerec`` OpenOneRec's recipe, on its fork of verl

``sids`` and ``pairs`` need torch and numpy only.
"""
