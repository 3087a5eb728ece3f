#!/usr/bin/env bash
# The whole method with its controls, for two traits: tables, vectors, figures and results/demo/report.html.
# bash scripts/demo.sh [GPU_ID] [MODEL] [JUDGE]
# Without a judge models/tiny-judge judges models/tiny-persona, and any other model itself.
set -euo pipefail
. "$(dirname "$0")/common.sh"
export CUDA_VISIBLE_DEVICES=${1-0}
model=${2:-models/tiny-persona}

python -m eval.demo --model "$model" ${3:+--judge_model "$3"} --traits evil humorous --output_dir results/demo
