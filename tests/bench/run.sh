#!/usr/bin/env bash
# Measures camlens beside pytorch-grad-cam, Captum, OpenVINO, ONNX Runtime and PyTorch, on this machine, and writes
# target/bench/figures.json, table.md and chart.png. What it needs of Python (some 6 GB) goes into the cache; see
# deploy/python-env.
#
#   tests/bench/run.sh                                    all networks, 1 and 8 rows, 30 rounds: two hours on two cores
#   tests/bench/run.sh --models resnet50 --rows 1         more options: cargo bench --bench explain -- --help
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$here"
case ${1:-} in -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit ;; esac

deploy/libtorch
export CAMLENS_PYTHON=${CAMLENS_PYTHON:-$(deploy/python-env bench)}
options=("$@")
((${#options[@]})) || options=(--models all --rows 1,8)
mkdir -p target/bench
cargo bench --bench explain -- "${options[@]}" --json "$here/target/bench/figures.json"
"$CAMLENS_PYTHON" tests/bench/draw.py target/bench/figures.json target/bench/chart.png | tee target/bench/table.md
