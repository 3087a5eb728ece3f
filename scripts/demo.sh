#!/usr/bin/env bash
# The whole method with its controls, for two traits: tables, vectors, figures and results/demo/report.html.
# bash scripts/demo.sh [GPU_ID] [MODEL] [JUDGE]     without a judge the model judges itself
set -euo pipefail
export CUDA_VISIBLE_DEVICES=${1:-0}
model=${2:-models/tiny-persona}
judge=${3:-$model}

python -m eval.demo --model "$model" --judge_model "$judge" --traits evil humorous --output_dir results/demo
