"""The torture bench: hostile inputs, kills, full disks and long runs, each case counted and repeatable by its number.

``make torture`` runs it. A kind of case is a ``Kind`` in ``KINDS``; a way to make an input hostile is one function with
``@mutator(KIND)`` above it. ``workers.py`` runs the cases in forked processes and says what became of each.
"""
