#!/usr/bin/env bash
# A trait's direction in weight space: its pos and neg adapters are trained, and their difference is written.
# bash scripts/extract_lora.sh GPU_ID [MODEL] [TRAIT] [further arguments of extract_persona_lora.py]
set -euo pipefail
n_places=3
. "$(dirname "$0")/common.sh"
export CUDA_VISIBLE_DEVICES=$1
model=${2:-Qwen/Qwen2.5-7B-Instruct}
trait=${3:-evil}

python extract_persona_lora.py --model "$model" --trait "$trait" \
  --output_dir "persona_loras/$(basename "$model")/$trait" "${@:4}"
