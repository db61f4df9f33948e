#!/usr/bin/env bash
# Clients in every language, tools and proxies as they are, cameras, and the pages in a browser, against the built
# binary. deploy/test --interop calls it.
#
#   tests/interop/run.sh                         everything
#   tests/interop/run.sh clients [CLIENT...]     the matrix of clients: python asyncio go node cpp java rust
#   tests/interop/run.sh tools                   grpcurl, grpc-health-probe, ghz, k6
#   tests/interop/run.sh proxies [PROXY...]      Envoy, nginx and HAProxy in between
#   tests/interop/run.sh cameras                 a camera over RTSP, GStreamer's pipelines and OpenCV's loop; GStreamer
#                                                and ffmpeg have to be installed
#   tests/interop/run.sh pages                   the live page and the report in Chromium, which has to be installed
#
# Toolchains and packages that this machine does not have are fetched into the cache (CAMLENS_CACHE, else
# ~/.cache/camlens). The tables are printed, and kept in target/interop/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=tests/interop/fetch.sh
. tests/interop/fetch.sh
built=$PWD/target/interop
mkdir -p "$built/go"

case ${1:-} in -h | --help) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
[[ -x target/release/camlens ]] || die "there is no target/release/camlens: cargo build --release"
parts=${1:-clients tools proxies cameras pages}
shift || true
python=$(deploy/python-env client)
for part in $parts; do
  case $part in
    clients)
      clients=("${@:-python}")
      (($#)) || clients=(python asyncio go node cpp java rust)
      for client in "${clients[@]}"; do
        case $client in
          python | asyncio) ;;
          go | node | cpp | java | rust) say "building the $client client"; "build_$client" ;;
          *) die "there is no client $client: python asyncio go node cpp java rust" ;;
        esac
      done
      say "clients × transports × what happens"
      "$python" tests/interop/matrix.py "${clients[@]}"
      ;;
    tools)
      tools
      say "tools"
      "$python" tests/interop/tools.py
      ;;
    proxies)
      proxies
      tools
      say "building the go client"
      build_go
      say "proxies"
      "$python" tests/interop/proxies.py "$@"
      ;;
    cameras)
      if cameras; then
        say "cameras"
        "$python" tests/interop/cameras.py
      fi
      ;;
    pages)
      if pages; then
        say "pages"
        "$python" tests/interop/pages.py
      fi
      ;;
    *) die "unknown part $part; tests/interop/run.sh --help lists what there is" ;;
  esac
done
