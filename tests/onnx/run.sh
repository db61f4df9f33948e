#!/usr/bin/env bash
# ONNX on this machine: ONNX's own tests of each operator that is read, the conformance cases through both exporters of
# PyTorch, real files against their definition, and classifiers of torchvision and timm at full size.
#
#   tests/onnx/run.sh [FOLDER]     keeps what it makes and fetches in FOLDER; default: target/onnx
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

out=${1:-target/onnx}
onnx=$(deploy/python-env onnx)
reference=$(deploy/python-env reference)
site=$(dirname "$onnx")/../site

"$onnx" tests/onnx/backend.py "$out/nodes"
PYTHONPATH=$site "$reference" tests/onnx/twins.py "$out/twins"
PYTHONPATH=$site "$reference" tests/onnx/definition.py "$out/files"

CAMLENS_ONNX_NODES=$out/nodes cargo test --release --locked --test onnx -- --nocapture
for root in twins files; do
  CAMLENS_ONNX_TWINS=$out/$root cargo test --release --locked --test conformance -- --nocapture onnx::every_case
done

cargo build --release --locked --bin camlens
PYTHONPATH=$site "$reference" -W ignore tests/onnx/classifiers.py "$out/classifiers"
