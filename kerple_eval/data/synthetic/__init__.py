"""Documents made, not read: a window of L inputs whose last targets are an answer that stands in it.

base       what a generator is; how depths and draws are laid out
haystack   prose with one sentence in it and a question at its end
texts      a made task as a text of a run
others     one generator a file
"""
