#!/usr/bin/env bash
# Steering by the trait's vector (scripts/generate_vec.sh) against steering by weights (scripts/extract_lora.sh).
# bash scripts/compare_methods.sh GPU_ID [MODEL] [TRAIT] [JUDGE] [LAYER] [further arguments]
set -euo pipefail
n_places=5
. "$(dirname "$0")/common.sh"
export CUDA_VISIBLE_DEVICES=$1
model=${2:-Qwen/Qwen2.5-7B-Instruct}
trait=${3:-evil}
stem=$(trait_name "$trait")
judge=${4:-gpt-4.1-mini-2025-04-14}
layer=${5:-20}
name=$(basename "$model")

python compare_steering_methods.py --model "$model" --trait "$trait" --judge_model "$judge" --layer "$layer" \
  --activation_vector_path "persona_vectors/$name/${stem}_response_avg_diff.pt" \
  --lora_diff_path "persona_loras/$name/${trait}/${trait}_lora_diff" \
  --output_dir "comparison_results/$name/$stem" --test_latency --analyze_spaces "${@:6}"
