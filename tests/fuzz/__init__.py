"""Damaged files of every format the package reads, one harness for all of them.

    seeds.py     whole inputs of each format, and the command that reads them
    damage.py    what is done to a file: bytes, JSON, YAML, Parquet
    harness.py   one case: damage, run the command in a child process, judge the answer
    __main__.py  ``python -m tests.fuzz --seconds 3600``: as many cases as the time allows

A case is a function of (format, number): ``python -m tests.fuzz --format native --case 17`` repeats one.
"""
