#!/usr/bin/env bash
# The same questions, steered with the trait's vector (made by scripts/generate_vec.sh).
# bash scripts/eval_steering.sh GPU_ID [MODEL] [TRAIT] [JUDGE] [LAYER] [COEF] [prompt|response|all] [further arguments]
set -euo pipefail
n_places=7
. "$(dirname "$0")/common.sh"
export CUDA_VISIBLE_DEVICES=$1
model=${2:-Qwen/Qwen2.5-7B-Instruct}
trait=${3:-evil}
stem=$(trait_name "$trait")
judge=${4:-gpt-4.1-mini-2025-04-14}
layer=${5:-20}
coef=${6:-2.0}
type=${7:-response}
name=$(basename "$model")

python -m eval.eval_persona --model "$model" --trait "$trait" --judge_model "$judge" --version eval \
  --vector_path "persona_vectors/$name/${stem}_response_avg_diff.pt" --layer "$layer" --coef "$coef" \
  --steering_type "$type" \
  --output_path "eval_persona_eval/$name/${stem}_steer_${type}_layer${layer}_coef${coef}.csv" "${@:8}"
