#!/usr/bin/env bash
# Runs the threads that run models under ThreadSanitizer, and once more at full speed.
#
#   tests/threads/run.sh [ROUNDS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

rounds=${1:-100}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
sources=(tests/threads/main.cpp src/torch/threads/pool.cpp src/torch/threads/openmp.cpp)
for flags in "-O1 -fsanitize=thread" "-O2"; do
  # shellcheck disable=SC2086
  "${CXX:-c++}" -std=c++17 -g -Wall -Wextra -fopenmp $flags "${sources[@]}" -o "$out/threads"
  TSAN_OPTIONS=halt_on_error=1 "$out/threads" "$rounds"
done
