#!/usr/bin/env bash
# Half an hour of one GPU: samples the dense model, finetunes it at 50% and at 60% zeros with int8 in the loop and at 50%
# with int4, measures, and leaves what is small enough to take away.
#
#   bench/gpu_finetune.sh OUT [SAMPLE_MINUTES [TRAIN_MINUTES]]      (2 and 5 by default; TRAIN_MINUTES for each of the three)
#
# It may be stopped and started again at any moment, so it also runs in pieces where commands are limited; keep OUT where
# it outlasts them. Without a network it needs what GOSSAMER_HOME holds where it ran before: `downloads` (the dense model)
# and `corpora`; bench/parts.py splits and joins any folder. In OUT afterwards, for RUN in 50-int8, 60-int8 and 50-int4:
# finetune-RUN.json (perplexity before and after, options, every step), its plot, and parts-RUN, the packed weights as
# files of at most 16 MB. This puts them together and checks every hash:
#
#   python bench/parts.py join OUT/parts-50-int8 packed-50-int8
set -euo pipefail
out=$(realpath -m "${1:?usage: bench/gpu_finetune.sh OUT [SAMPLE_MINUTES [TRAIN_MINUTES]]}")
sample_minutes=${2:-2} train_minutes=${3:-5}
cd "$(dirname "$0")/.."
mkdir -p "$out"
python=${PYTHON:-python3}
runs=(50-int8 60-int8 50-int4)

command_of() { # command_of RUN: puts the command that finetunes it into `command`
  command=("$python" bench/finetune.py "$out/models" --sparsity "0.${1%-*}" --weights "${1#*-}")
}

# Pruning is the processor's work, and sampling the GPU's.
pruning=()
for run in "${runs[@]}"; do
  command_of "$run"
  "${command[@]}" --prune-only > "$out/prune-$run.log" 2>&1 &
  pruning+=($!)
done
trap 'kill "${pruning[@]}" 2> /dev/null || true' EXIT
# Samples are written part by part, and those that are there when the time is over (124) count.
if [ ! -e "$out/samples.done" ]; then
  timeout "$((sample_minutes * 60))" "$python" -c 'from gossamer.cli import main; raise SystemExit(main())' \
    sample smollm2-135m-instruct-dense "$out/samples" --tokens 20M --device cuda || [ $? = 124 ]
  compgen -G "$out/samples/*.safetensors" > /dev/null || { echo "$out/samples: not one part in time" >&2; exit 1; }
  touch "$out/samples.done"
fi
for job in "${pruning[@]}"; do wait "$job" || { tail -n 5 "$out"/prune-*.log >&2; exit 1; }; done

for run in "${runs[@]}"; do
  [ ! -e "$out/finetune-$run.json" ] || continue
  command_of "$run"
  "${command[@]}" --samples "$out/samples" --loss 0.25 0 1 --budget-minutes "$train_minutes" --length 512 --batch 16 \
    --validations 10 --validation-windows 32 --name finetune-gpu --plot "$out/finetune-$run.svg"
  rm -rf "$out/parts-$run"
  "$python" bench/parts.py split "$out/models/finetune-gpu-$run-packed-${run#*-}-64" "$out/parts-$run"
  cp bench/results/finetune-gpu.json "$out/finetune-$run.json"
done
ls -l "$out"
