#!/usr/bin/env bash
# Half an hour of one GPU: samples the dense model, finetunes it at 50% and at 60% zeros, measures, and leaves what is small
# enough to take away.
#
#   bench/gpu_finetune.sh OUT [SAMPLE_MINUTES [TRAIN_MINUTES]]      (5 and 8 by default; TRAIN_MINUTES for each of the two)
#
# It may be stopped and started again at any moment. Without a network it needs what GOSSAMER_HOME holds where it ran before:
# `downloads` (the dense model) and `corpora`; bench/parts.py splits and joins any folder. In OUT afterwards: finetune-50.json and finetune-60.json (perplexity
# before and after, options, every step), their plots, and parts-50 and parts-60, the packed int8 weights as files of at most
# 16 MB. This puts them together and checks every hash:
#
#   python bench/parts.py join OUT/parts-50 packed-50
set -euo pipefail
out=$(realpath -m "${1:?usage: bench/gpu_finetune.sh OUT [SAMPLE_MINUTES [TRAIN_MINUTES]]}")
sample_minutes=${2:-5} train_minutes=${3:-8}
cd "$(dirname "$0")/.."
mkdir -p "$out"
python=${PYTHON:-python3}

# Samples are written part by part, and those that are there when the time is over (124) count.
if [ ! -e "$out/samples.done" ]; then
  timeout -s INT "$((sample_minutes * 60))" "$python" -c 'from gossamer.cli import main; raise SystemExit(main())' \
    sample smollm2-135m-instruct-dense "$out/samples" --tokens 20M || [ $? = 124 ]
  touch "$out/samples.done"
fi

for sparsity in 50 60; do
  [ ! -e "$out/finetune-$sparsity.json" ] || continue
  "$python" bench/finetune.py "$out/models" --sparsity "0.$sparsity" --weights int8 --samples "$out/samples" \
    --budget-minutes "$train_minutes" --length 512 --batch 16 --validations 10 --validation-windows 32 \
    --name "finetune-gpu-$sparsity" --plot "$out/finetune-$sparsity.svg"
  rm -rf "$out/parts-$sparsity"
  "$python" bench/parts.py split "$out/models/finetune-gpu-$sparsity-$sparsity-int8-packed-int8-64" "$out/parts-$sparsity"
  cp "bench/results/finetune-gpu-$sparsity.json" "$out/finetune-$sparsity.json"
done
ls -l "$out"
