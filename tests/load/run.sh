#!/usr/bin/env bash
# Load and fault campaigns against the real binary on a Unix socket. Each prints one line of JSON with its figures, with
# the share of the cores that client and server used, and "pass". Those from added_latency on measure speed and memory,
# most with ResNet-50; a machine that has something else to do falsifies them.
#
#   tests/load/run.sh [--binary PATH] NAME… [-- OPTIONS]     e.g. tests/load/run.sh fairness sigterm
#   tests/load/run.sh --list
#
# OPTIONS go to each of the named campaigns (tests/load/NAME.py --help). The binary is target/release/camlens unless
# named.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
campaigns=(fairness stuck_reader killed_clients sigterm batching overload telemetry reload)
campaigns+=(added_latency jpeg_throughput many_streams identity_rate memory)
campaigns+=(neighbours quota background before viewers capacity camera)

die() { printf 'error: %s\n' "$*" >&2; exit 2; }

binary=$here/../../target/release/camlens
names=() options=()
while (($#)); do
  case $1 in
    --binary) binary=${2:?--binary needs a path}; shift ;;
    --list) printf '%s\n' "${campaigns[@]}"; exit ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit ;;
    --) shift; options=("$@"); break ;;
    -*) die "unknown option $1" ;;
    *) names+=("$1") ;;
  esac
  shift
done
((${#names[@]})) || die "name a campaign: ${campaigns[*]}"
[[ -x $binary ]] || die "there is no $binary; cargo build --release makes it"

failed=0
for name in "${names[@]}"; do
  [[ " ${campaigns[*]} " == *" $name "* ]] || die "there is no campaign $name; there are ${campaigns[*]}"
  python3 "$here/$name.py" --binary "$binary" "${options[@]}" || failed=1
done
exit $failed
