"""Damaged files, odd arguments and kills at random moments. Each law holds for whatever hypothesis draws; ``test_fuzz.py`` runs each for
some seconds, ``python tests/fuzz`` for as long as it is told, and counts.
"""
