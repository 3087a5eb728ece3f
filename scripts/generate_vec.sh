#!/usr/bin/env bash
# A trait's vectors: answers under its pos and neg instructions, judged, and the difference of their mean activations.
# bash scripts/generate_vec.sh GPU_ID [MODEL] [TRAIT] [JUDGE] [further arguments of eval.eval_persona]
set -euo pipefail
n_places=4
. "$(dirname "$0")/common.sh"
export CUDA_VISIBLE_DEVICES=$1
model=${2:-Qwen/Qwen2.5-7B-Instruct}
trait=${3:-evil}
stem=$(trait_name "$trait")
judge=${4:-gpt-4.1-mini-2025-04-14}
name=$(basename "$model")

for pole in pos neg; do
  python -m eval.eval_persona --model "$model" --trait "$trait" --judge_model "$judge" --version extract \
    --persona_instruction_type "$pole" --output_path "eval_persona_extract/$name/${stem}_${pole}_instruct.csv" "${@:5}"
done
python generate_vec.py --model_name "$model" --trait "$trait" --save_dir "persona_vectors/$name" \
  --pos_path "eval_persona_extract/$name/${stem}_pos_instruct.csv" \
  --neg_path "eval_persona_extract/$name/${stem}_neg_instruct.csv"
