#!/usr/bin/env bash
# Fuzz the targets one after the other, and print a line of results for each.
#
#   tests/fuzz/run.sh [SECONDS] [TARGET...]      600 seconds each of: archive frame onnx settings stream
#
# Each target starts from its corpus, tests/fuzz/corpus/TARGET.zip, which is unpacked to tests/fuzz/scratch/corpus. New
# inputs go to tests/fuzz/scratch/TARGET, crashes to tests/fuzz/artifacts/TARGET. When a crash is fixed, add its input
# to the corpus, so that tests/corpora.rs replays it: tests/fuzz/corpus.py add TARGET
# tests/fuzz/artifacts/TARGET/crash-…. SANITIZER=none before the command runs faster, without AddressSanitizer: it finds
# panics, hangs and wrong answers only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

seconds=${1:-600}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || die "SECONDS is a number, not $seconds"
shift || true
targets=("$@")
(( ${#targets[@]} )) || targets=(archive frame onnx settings stream)

command -v cargo >/dev/null || die "cargo is missing: install Rust (https://rustup.rs)"
cargo +nightly --version >/dev/null 2>&1 || die "a nightly toolchain is missing: rustup toolchain install nightly"
deploy/libtorch
if ! cargo fuzz --version >/dev/null 2>&1; then
  say "installing cargo-fuzz (once, some minutes)"
  cargo install --quiet cargo-fuzz --locked
fi

build=(--fuzz-dir tests/fuzz --sanitizer "${SANITIZER:-address}")
# libtorch keeps what it once allocated.
export ASAN_OPTIONS=detect_leaks=0:${ASAN_OPTIONS:-}
say "building (some minutes the first time)"
cargo +nightly fuzz build "${build[@]}"

crashed=0
for target in "${targets[@]}"; do
  [[ -f tests/fuzz/targets/$target.rs ]] || die "there is no target $target"
  scratch=tests/fuzz/scratch/$target
  mkdir -p "$scratch" "tests/fuzz/artifacts/$target"
  log=tests/fuzz/scratch/$target.log
  corpus=tests/fuzz/scratch/corpus/$target
  rm -rf "$corpus"
  tests/fuzz/corpus.py unpack "$target" "$corpus"
  options=(-max_total_time="$seconds" -rss_limit_mb=4096 -timeout=25 -print_final_stats=1)
  case $target in
    archive) options+=(-max_len=40000) ;;
    frame) options+=(-max_len=20000) ;;
    settings) options+=(-max_len=4096 -dict=tests/fuzz/settings.dict) ;;
    stream) options+=(-max_len=4096) ;;
  esac
  say "$target for $seconds s"
  if cargo +nightly fuzz run "${build[@]}" "$target" "$scratch" "$corpus" -- "${options[@]}" >"$log" 2>&1; then
    result="no crash"
  else
    result="CRASHED, see $log" crashed=1
  fi
  executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  edges() { sed -nE 's/.*(INITED|NEW|REDUCE|DONE|pulse|RELOAD) .*cov: ([0-9]+).*/\2/p' "$log"; }
  printf '%-10s %12s executions, %s edges at the start, %s at the end, %s\n' \
    "$target" "${executions:-?}" "$(edges | head -n 1)" "$(edges | tail -n 1)" "$result"
done
exit "$crashed"
