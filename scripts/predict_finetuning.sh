#!/usr/bin/env bash
# How far finetuned models moved along the trait's direction of weights (scripts/extract_lora.sh), against their scores.
# bash scripts/predict_finetuning.sh GPU_ID [MODEL] [TRAIT] [MODELS_DIR] [SCORES] [further arguments]
# SCORES is a CSV with columns model_name, one a trait, and optionally group; "" leaves the correlations out.
set -euo pipefail
n_places=5
. "$(dirname "$0")/common.sh"
export CUDA_VISIBLE_DEVICES=$1
model=${2:-Qwen/Qwen2.5-7B-Instruct}
trait=${3:-evil}
name=$(basename "$model")
models=${4:-ckpt/$name}
scores=${5:-}

python cal_weight_projection.py --original_model "$model" --finetuned_models_dir "$models" \
  --lora_diff_path "persona_loras/$name/$trait/${trait}_lora_diff" \
  --output_path "persona_loras/$name/$trait/weight_projections.json" ${scores:+--behavior_scores "$scores"} "${@:6}"
