"""How sure a number is, and what a longer context gives. Functions of records, no torch.

    documents     a cell's sums and counts by document
    intervals     intervals of a ratio of sums: linearised (the default) and bootstrap
    seeds         mean and spread over seeds; seeds and documents as crossed random effects
    significance  sign-flip permutation and t-test of paired differences; Holm's correction
    groups        finished cells of runs, gathered by scheme with their seeds
    compare       two schemes on the same targets: all of the above
    answers       exact matches of made documents, by depth
    context_gain  a change of loss with length, split into dilution and context gain
    between_protocols  why two protocols give one model two numbers
    gain          where a change of loss comes from: classes of targets, spans of text
    longppl       perplexity on the tokens that need long context
    looks         when to stop adding documents

Units: losses in nats per target; sums in float64.
"""
