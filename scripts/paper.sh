#!/usr/bin/env bash
# The paper's claims on models/tiny-persona, each beside its control: a table, figures and results/paper/claims.html.
# bash scripts/paper.sh GPU_ID [further arguments of benchmarks.paper]      one seed, at most 20 minutes on 2 cores
set -euo pipefail
n_places=1
. "$(dirname "$0")/common.sh"
export CUDA_VISIBLE_DEVICES=$1

OMP_NUM_THREADS=1 python -m benchmarks.paper "${@:2}"
