#!/usr/bin/env bash
# How much of a trait a model shows on the held-out eval questions, without any instruction.
# bash scripts/eval_persona.sh GPU_ID [MODEL] [TRAIT] [JUDGE] [further arguments of eval.eval_persona]
set -euo pipefail
n_places=4
. "$(dirname "$0")/common.sh"
export CUDA_VISIBLE_DEVICES=$1
model=${2:-Qwen/Qwen2.5-7B-Instruct}
trait=${3:-evil}
stem=$(trait_name "$trait")
judge=${4:-gpt-4.1-mini-2025-04-14}

python -m eval.eval_persona --model "$model" --trait "$trait" --judge_model "$judge" --version eval \
  --output_path "eval_persona_eval/$(basename "$model")/$stem.csv" "${@:5}"
