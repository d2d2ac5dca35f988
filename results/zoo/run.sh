#!/bin/sh
# Three seeds each of four schemes, trained at 512 bytes, to 16,384. From the top of the clone; nothing is
# trained. Stop it and start it again: finished cells stay (in $OUT/cells, 63 MB, not committed).
set -e
PYTHON=${PYTHON:-python}
OUT=${OUT:-results/zoo}
for scheme in kerple-log alibi t5 rope; do
  MODELS="$MODELS zoo:$scheme-s1 zoo:$scheme-s2 zoo:$scheme-s3"
done
$PYTHON -m kerple_eval run $MODELS --task sotu --documents 8 --max-tokens 16385 \
  --length 512,1024,2048,4096,8192,16384 --protocol full-context \
  --protocol aligned:k=128,every=2048@4096 --protocol sliding-window:stride=128@512 --out "$OUT"
$PYTHON -m kerple_eval table "$OUT" --over-seeds --format markdown > "$OUT/table.md"
$PYTHON -m kerple_eval table "$OUT" --over-seeds --format latex > "$OUT/table.tex"
$PYTHON -m kerple_eval table "$OUT" --over-seeds --against paper:dataset=ArXiv --format markdown > "$OUT/paper.md"
$PYTHON -m kerple_eval intervals "$OUT" --format markdown > "$OUT/intervals.md"
$PYTHON -m kerple_eval compare "$OUT" --against kerple-log --format markdown > "$OUT/compare.md"
$PYTHON -m kerple_eval explain "$OUT" --length 512,4096 --format markdown > "$OUT/explain.md"
$PYTHON -m kerple_eval plot "$OUT" --kind curve --over-seeds --protocol full-context --out "$OUT/curve.png"
$PYTHON -m kerple_eval plot "$OUT" --kind ratio --protocol full-context --against kerple-log-s1 --out "$OUT/ratio.png"
$PYTHON -m kerple_eval plot "$OUT" --kind position --length 2048 --protocol full-context --out "$OUT/position.png"
$PYTHON -m kerple_eval report "$OUT"
$PYTHON results/zoo/pairs.py "$OUT"
