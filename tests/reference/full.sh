#!/usr/bin/env bash
# Compare camlens with PyTorch's own gradients, Captum and pytorch-grad-cam on torchvision's full-size models, try
# deploy/export with a real PyTorch, and check the default layer and the maps of 100 drawn classifiers.
#
#   tests/reference/full.sh [NAME...]     writes 3 GB of references (kept for the next run) and runs the conformance
# tests on them; with names of large models, on these alone and without the drawn classifiers
#
# CAMLENS_REFERENCES is the directory of the references (default: target/references).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export CAMLENS_REFERENCES=${CAMLENS_REFERENCES:-$PWD/target/references}
mkdir -p "$CAMLENS_REFERENCES"
free=$(df -Pm "$CAMLENS_REFERENCES" | awk 'NR == 2 { print $4 }')
if (( free < 5000 )) && [[ ! -d $CAMLENS_REFERENCES/maxvit_t ]]; then
  printf 'error: %s has %s MiB free and the references take 4000; set CAMLENS_REFERENCES to a larger disk\n' \
    "$CAMLENS_REFERENCES" "$free" >&2
  exit 1
fi

python=$(deploy/python-env reference)
"$python" tests/reference/full.py --out "$CAMLENS_REFERENCES" "$@"
cargo build --release --locked --bin camlens
"$python" -W ignore tests/reference/test_export.py
# One thread on both sides: kernels split their sums by the number of threads.
OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 cargo test --release --locked --test conformance -- --nocapture
if (( $# == 0 )); then
  "$python" tests/reference/classifiers.py
fi
