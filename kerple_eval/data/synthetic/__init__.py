"""Synthetic documents: one window of L inputs whose last targets are an answer that occurs in it.

base       what a generator is; depths and random draws
haystack   prose with one sentence in it and a question at its end
texts      a synthetic task as a text of a run
others     one generator per file
"""
