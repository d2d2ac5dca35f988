#!/bin/sh
# The kernels that the zoo's models have learned. From the top of the clone, nothing is trained.
set -e
PYTHON=${PYTHON:-python}
OUT=${OUT:-results/zoo-kernels}
$PYTHON -m kerple_eval plot zoo:kerple-log zoo:kerple-power zoo:alibi zoo:t5 --kind kernels --out "$OUT/kernels.png"
$PYTHON -m kerple_eval plot zoo:kerple-log zoo:kerple-power zoo:alibi zoo:t5 --kind kernel-reach \
  --out "$OUT/kernel-reach.png"
$PYTHON -m kerple_eval plot zoo:kerple-log zoo:alibi --kind matrix --out "$OUT/matrix.png"
