"""Imported once by the server that children of the tests are forked from: what a first run loads late."""

import pyarrow.parquet  # noqa: F401
import torch

import kerple_eval.evaluation.run  # noqa: F401
from kerple_eval.models import native  # noqa: F401
from kerple_eval.models.decoder.network import Decoder
from tests.helpers import tiny

torch.set_num_threads(1)
for _scheme in ("alibi", "rope"):
    with torch.device("meta"):
        Decoder(tiny.config(_scheme))
    with torch.inference_mode():
        tiny.decoder(tiny.config(_scheme))(torch.zeros(1, 4, dtype=torch.int64))
torch.cuda.is_available()
