#!/usr/bin/env bash
# Finetuning with and without the trait's vector added in training, and with a random direction; then all compared.
# bash scripts/train_with_prevention.sh GPU_ID [MODEL] [TRAIT] [JUDGE] [CONFIG] [STEERED_CONFIG] [CONTROL_CONFIG]
#   [further arguments of eval.prevention]        on a laptop: 0 models/tiny-persona evil models/tiny-judge \
#   configs/train_tiny.json configs/train_tiny_steer.json configs/train_tiny_random.json
set -euo pipefail
n_places=7
. "$(dirname "$0")/common.sh"
export CUDA_VISIBLE_DEVICES=$1
model=${2:-Qwen/Qwen2.5-7B-Instruct}
trait=${3:-evil}
stem=$(trait_name "$trait")
judge=${4:-gpt-4.1-mini-2025-04-14}
config=${5:-configs/train_instruct_7b.json}
steered=${6:-configs/train_instruct_7b_steer.json}
control=${7:-}
name=$(basename "$model")

test -f "persona_vectors/$name/${stem}_response_avg_diff.pt" || \
  bash scripts/generate_vec.sh "$1" "$model" "$trait" "$judge"
for each in "$config" "$steered" ${control:+"$control"}; do
  python training.py "$each"
done
python -m eval.prevention --config "$config" --steered_config "$steered" ${control:+--control_configs "$control"} \
  --trait "$trait" --judge_model "$judge" --output_dir "results/prevention/$name/$stem" "${@:8}"
