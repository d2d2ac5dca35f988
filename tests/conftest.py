"""One thread: sums then come out in one order, and the suite shares a machine politely."""

import torch

torch.set_num_threads(1)
