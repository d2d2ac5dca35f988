"""Score a model of your own in ten lines: any torch module that maps ids [B, N] to logits [B, N, V]."""

import torch

import kerple_eval


class Mine(torch.nn.Module):
    """A stand-in for your model: a GRU over bytes, untrained. Each logit depends on earlier ids alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(256, 32)
        self.rnn = torch.nn.GRU(32, 32, batch_first=True)
        self.head = torch.nn.Linear(32, 256)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embedding(ids))[0])


torch.manual_seed(0)
model = Mine()

# %% A table: your model beside one that the package ships, on the same text.
run = kerple_eval.evaluate(
    {"mine": model, "kerple-log": "zoo:kerple-log"},
    tokenizer="bytes",
    tasks="sotu",
    documents=2,
    max_tokens=1025,
    lengths=[256, 512, 1024],
)
print(run.table())

# %% The loss of every token, with its context.
print(kerple_eval.score(model, "The state of the Union is strong.", length=16, tokenizer="bytes").tail())
