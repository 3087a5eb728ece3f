#!/usr/bin/env bash
# The same questions, with the trait's direction in the weights (made by scripts/extract_lora.sh), beside random ones.
# bash scripts/eval_lora_steering.sh GPU_ID [MODEL] [TRAIT] [JUDGE] [further arguments of eval_lora_persona.py]
set -euo pipefail
n_places=4
. "$(dirname "$0")/common.sh"
export CUDA_VISIBLE_DEVICES=$1
model=${2:-Qwen/Qwen2.5-7B-Instruct}
trait=${3:-evil}
judge=${4:-gpt-4.1-mini-2025-04-14}
name=$(basename "$model")

python eval_lora_persona.py --model "$model" --trait "$trait" --judge_model "$judge" --lora_coef -1 -0.5 0 0.5 1 1.5 \
  --lora_diff_path "persona_loras/$name/$trait/${trait}_lora_diff" --control random \
  --output_path "eval_persona_eval/$name/${trait}_lora.csv" "${@:5}"
