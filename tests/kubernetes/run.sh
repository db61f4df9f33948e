#!/usr/bin/env bash
# The chart and the image on a real Kubernetes: etcd, API server, controllers, scheduler, a kubelet with containerd.
#
#   tests/kubernetes/run.sh [STEP…]      all steps, or those named; --list names them
#
# Kubernetes is built from its Go modules into the cache (once: about 15 minutes, 2 GiB); needs root, Go 1.26, npm and
# cgroup v1. RATE (4) is how many frames a second each of two cameras sends, RESTARTS (100) how often the step
# `restarts` ends camlens, REPLICAS (1000) to how many simulated ones `scale` goes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
here=tests/kubernetes
say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

steps=(apply first run tls killed restarts hangs headless roll upgrade drain job scale)
case ${1:-} in
  --list) printf '%s\n' "${steps[@]}"; exit 0 ;;
  -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
for step; do [[ " ${steps[*]} " == *" $step "* ]] || die "there is no step $step: there are ${steps[*]}"; done
wanted=("$@")
[[ $# -gt 0 ]] || wanted=("${steps[@]}")
[[ $(id -u) == 0 ]] || die "needs root: the kubelet and containerd do"

cache=${CAMLENS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/camlens}
dir=${KUBERNETES_DIR:-$cache/kubernetes}
out=$PWD/target/tmp/kubernetes
mkdir -p "$out"
helm=$(deploy/tools helm)
export CAMLENS_STUBS=$out/stubs
source "$here/first.sh"
source "$here/faults.sh"
source "$here/many.sh"
cluster() { "$here/cluster" "$@"; }
k() { cluster run "$dir" kubectl "$@"; }
render() { "$helm" template camlens deploy/chart "$@" 2>>"$out/helm.log"; }
load() { cluster run "$dir" "$(deploy/python-env client)" "$here/load.py" --rate "${RATE:-4}" "$@"; }

ended() {
  local code=$?
  jobs -p | xargs -r kill 2>/dev/null || true
  if ((code)) && [[ -e $dir/run/mode ]]; then
    k get pods -A -o wide >&2 || true
    k get events -A --field-selector type=Warning >&2 | tail -n 20 || true
  fi
  cluster down "$dir" >/dev/null || true
  exit $code
}
trap ended EXIT

# ------------------------------------------------------------------------------------------ what the API server says
definitions() { # custom resource definitions of KEDA, the Prometheus operator and KServe
  go_module() { (cd / && GOFLAGS=-mod=mod go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'); }
  echo "$(go_module github.com/kedacore/keda/v2@v2.21.0)/config/crd/bases"
  echo "$(go_module github.com/prometheus-operator/prometheus-operator@v0.85.0)/example/prometheus-operator-crd"
  echo "$(go_module github.com/kserve/kserve@v0.17.0)/config/crd/full/serving.kserve.io_inferenceservices.yaml"
}

matrix() { # every combination that is applied, one file each
  local example device security
  local tls="tls.secret=camlens-tls,tls.clientCaKey=ca.crt,tokens.secret=camlens-tokens,listen.scope=pod"
  local version=$1 to=$2
  rm -rf "$to"
  mkdir -p "$to"
  for example in bare triton kserve standalone; do
    for device in cpu gpu; do
      for security in plain tls; do
        local options=(--values "deploy/chart/examples/$example.yaml")
        [[ $device == cpu ]] || options+=(--values deploy/chart/examples/gpu.yaml)
        if [[ $security == tls ]]; then options+=(--set "$tls"); else options+=(--set insecure=true,tls.secret=); fi
        render --namespace vision --kube-version "$version.0" "${options[@]}" >"$to/$example-$device-$security.yaml"
      done
    done
  done
  local autoscaled=(--values deploy/chart/examples/bare.yaml --set "autoscaling.prometheus=http://prometheus:9090")
  render --namespace vision --kube-version "$version.0" "${autoscaled[@]}" --set autoscaling.kind=hpa >"$to/hpa.yaml"
  render --namespace vision --kube-version "$version.0" "${autoscaled[@]}" --set autoscaling.kind=keda >"$to/keda.yaml"
  cp deploy/manifests/*.yaml deploy/job.yaml "$to/"
}

as_pod() { # the pod of a rendered Deployment: Pod Security is enforced on pods
  "$(deploy/python-env deploy)" - "$1" <<'PY'
import sys, yaml
for made in yaml.safe_load_all(open(sys.argv[1])):
    if made and made["kind"] in ("Deployment", "Job"):
        template = made["spec"]["template"]
        template["metadata"] = {**template.get("metadata", {}), "name": "one", "namespace": "vision"}
        print(yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", **template}))
PY
}

apply() {
  local version file folders folder answer
  mapfile -t folders < <(definitions)
  for version in 1.33 1.34 1.35 1.36; do
    cluster api "$dir" $([[ $version == 1.36 ]] || echo $version) >"$out/cluster.log"
    for folder in "${folders[@]}"; do k apply --server-side -f "$folder" >>"$out/cluster.log"; done
    # A definition without any condition yet is an error to `kubectl wait`.
    until k wait --for=condition=Established crd --all --timeout=60s >>"$out/cluster.log" 2>&1; do sleep 1; done
    k create namespace vision >/dev/null
    k label namespace vision pod-security.kubernetes.io/enforce=restricted >/dev/null
    k create -f - <<<'{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: nvidia}, handler: nvidia}' \
      >/dev/null
    matrix $version "$out/matrix"
    answer=$(k apply --server-side --validate=strict --dry-run=server -f "$out/matrix" 2>&1) ||
      die "Kubernetes $version refuses what the chart renders: $(grep -iv 'serverside-applied' <<<"$answer")"
    if grep -i warning <<<"$answer"; then die "Kubernetes $version warns of what the chart renders"; fi
    say "Kubernetes $version takes $(grep -c serverside-applied <<<"$answer") objects of $(ls "$out/matrix" | wc -l)" \
      "files"
    for file in "$out"/matrix/{bare,triton,standalone}-{cpu,gpu}-*.yaml "$out/matrix/job.yaml"; do
      as_pod "$file" | k apply --server-side --validate=strict --dry-run=server -f - >/dev/null ||
        die "the pods of $file break Pod Security restricted"
    done
    mistakes
    cluster down "$dir" >>"$out/cluster.log"
  done
}

mistakes() { # the API server finds what is planted: so its silence above means something
  local number=0 change
  for change in 's/restartPolicy: Always/restartPolicy: Sometimes/' 's/sleep: {seconds: 5}/sleep: {seconds: 5000}/' \
    's/volumeMounts:/volumeMount:/' 's/maxUnavailable: 1$/maxUnavailable: one/' \
    's/port: camlens-probes/port: prob_es!/'; do
    sed "$change" "$out/matrix/bare-cpu-plain.yaml" >"$out/mistake.yaml"
    if cmp -s "$out/matrix/bare-cpu-plain.yaml" "$out/mistake.yaml"; then die "the mistake $change is none"; fi
    if k apply --server-side --validate=strict --dry-run=server -f "$out/mistake.yaml" >/dev/null 2>&1; then
      die "the API server took a mistake: $change"
    fi
    number=$((number + 1))
  done
  for change in 's/runAsNonRoot: true/runAsNonRoot: false/' 's/- ALL$/- CHOWN/'; do
    as_pod "$out/matrix/bare-cpu-plain.yaml" | sed "$change" >"$out/mistake.yaml"
    if k apply --server-side --dry-run=server -f "$out/mistake.yaml" >/dev/null 2>&1; then
      die "Pod Security took a mistake: $change"
    fi
    number=$((number + 1))
  done
  say "  and refuses $number of $number planted mistakes"
}

# ------------------------------------------------------------------------------------------------- what really runs
up() {
  if [[ -e $dir/run/mode ]]; then return; fi
  [[ -x target/release/camlens ]] || die "there is no target/release/camlens: run deploy/test or cargo build --release"
  deploy/image/build --name localhost/camlens:test --models deploy/models "$out/camlens.tar"
  cluster up "$dir" >"$out/cluster.log"
  cluster load "$dir" "$out/camlens.tar" >>"$out/cluster.log"
}

namespace() { # an empty namespace under Pod Security restricted
  k delete namespace vision --ignore-not-found --wait >/dev/null 2>&1
  k create namespace vision >/dev/null
  k label namespace vision pod-security.kubernetes.io/enforce=restricted >/dev/null
}

install() { # install [HELM-OPTION…]: waits until it is ready, and says how long that took
  local began=$(date +%s%N)
  render --namespace vision --values $here/values.yaml "$@" | k apply --server-side --validate=strict -f - >/dev/null
  k -n vision rollout status deployment/camlens --timeout=180s >/dev/null
  say "ready $((($(date +%s%N) - began) / 1000000)) ms after it was applied"
}

pods() { k -n vision get pods -l app.kubernetes.io/name=camlens -o "$@"; }
restarts_of() { pods jsonpath='{.items[0].status.initContainerStatuses[0].restartCount}'; }
page() { # page PATH: of the port of probes of the first pod
  cluster run "$dir" curl -sf --max-time 5 "http://$(pods jsonpath='{.items[0].status.podIP}'):9465$1"
}

cpu_ms() { page /metrics | awk '/^process_cpu_time_seconds_total/ { sum += $NF } END { printf "%d", sum * 1000 }'; }

run() { # the sidecar beside its neighbour, its limits, its ports
  local seen resident began used
  up; namespace
  install
  load --namespace vision --seconds 10
  began=$(date +%s%N) used=$(cpu_ms)
  load --namespace vision --seconds 10 --rate 30
  used=$((($(cpu_ms) - used) * 1000000 * 100 / ($(date +%s%N) - began)))
  say "more frames than the CPU limit of one core can explain: $used % of a core were used"
  ((used <= 110)) || die "the CPU limit does not hold"
  seen=$(pods jsonpath='{.items[0].status.initContainerStatuses[0]}')
  grep -q '"restartCount":0' <<<"$seen" || die "camlens was restarted: $seen"
  resident=$(page /metrics | awk '/^process_memory_usage_bytes/ { printf "%.0f", $NF / 1048576 }')
  say "resident after the load: $resident of 512 MiB"
  [[ $(page /readyz >/dev/null && echo yes) == yes ]] || die "/readyz does not say ready"
  if page /config >/dev/null || page /version >/dev/null; then die "the port of probes shows the configuration"; fi
}

tls() { # TLS, mutual, with tokens
  local to=$out/certificates server
  up; namespace
  mkdir -p "$to"
  certificates "$to"
  k -n vision create secret generic camlens-tls --from-file="$to/tls.crt" --from-file="$to/tls.key" \
    --from-file="$to/ca.crt" >/dev/null
  k -n vision create secret generic camlens-tokens --from-file=tokens="$to/token" >/dev/null
  install --set insecure=false,tls.secret=camlens-tls,tls.clientCaKey=ca.crt,tokens.secret=camlens-tokens
  load --namespace vision --seconds 10 --ca "$to/ca.crt" --certificate "$to/client.crt" --key "$to/client.key" \
    --token "$to/token"
  server=$(pods jsonpath='{.items[0].status.podIP}'):8033
  if ask --server "$server"; then die "plaintext was served"; fi
  if ask --server "https://$server" --tls-ca "$to/ca.crt" --token-file "$to/token"; then
    die "a client without a certificate was served"
  fi
}

ask() { cluster run "$dir" timeout 20 "$PWD/target/release/camlens" models "$@" >/dev/null 2>&1; }

certificates() { # certificates TO: an authority, and certificates of a server and of a client
  local to=$1 name
  openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout "$to/ca.key" \
    -out "$to/ca.crt" 2>/dev/null
  for name in tls client; do
    openssl req -newkey rsa:2048 -nodes -subj "/CN=$name" -keyout "$to/$name.key" -out "$to/$name.csr" 2>/dev/null
    openssl x509 -req -in "$to/$name.csr" -CA "$to/ca.crt" -CAkey "$to/ca.key" -CAcreateserial -days 2 \
      -extfile <(echo "subjectAltName=DNS:camlens.test") -out "$to/$name.crt" 2>/dev/null
  done
  head -c 24 /dev/urandom | base64 | tr '+/' '-_' >"$to/token"
}

cluster build "$dir"
for step in "${wanted[@]}"; do
  say "step $step"
  $step
done
say "all steps passed: ${wanted[*]}"
