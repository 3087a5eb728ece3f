#!/usr/bin/env bash
# Projections of a model's answers on the trait's vector, added to the table of scripts/eval_persona.sh.
# bash scripts/cal_projection.sh GPU_ID [MODEL] [TRAIT] [LAYER] [proj|prompt_last_proj|cos_sim] [further arguments]
set -euo pipefail
n_places=5
. "$(dirname "$0")/common.sh"
export CUDA_VISIBLE_DEVICES=$1
model=${2:-Qwen/Qwen2.5-7B-Instruct}
trait=${3:-evil}
stem=$(trait_name "$trait")
layer=${4:-20}
type=${5:-proj}
name=$(basename "$model")

python -m eval.cal_projection --model_name "$model" --file_path "eval_persona_eval/$name/$stem.csv" \
  --vector_path_list "persona_vectors/$name/${stem}_response_avg_diff.pt" --layer_list "$layer" \
  --projection_type "$type" "${@:6}"
