#!/usr/bin/env bash
# Steps of run.sh: what ends, hangs, changes or goes away under load, without a lost frame.

signal() { # signal NAME: to camlens in the first pod
  local id
  id=$(pods jsonpath='{.items[0].status.initContainerStatuses[0].containerID}')
  ctr --address "$dir/run/containerd.sock" --namespace k8s.io task kill --signal "$1" "${id#containerd://}"
}

neighbour_restarts() { pods jsonpath='{.items[0].status.containerStatuses[0].restartCount}'; }

killed() { # camlens is killed under load: only it restarts, and the cameras resume
  up; namespace
  install
  load --namespace vision --seconds 30 >"$out/kill.json" & local loading=$!
  under_load
  signal SIGKILL
  wait $loading || die "frames were lost when camlens was killed: $(cat "$out/kill.json")"
  say "kill -9: $(cat "$out/kill.json")"
  [[ $(restarts_of) == 1 ]] || die "camlens was restarted $(restarts_of) times, not once"
  [[ $(neighbour_restarts) == 0 ]] || die "the model server was restarted with camlens"
}

restarts() { # camlens is ended again and again under load, by SIGKILL and by SIGTERM in turn
  local number name pod wanted=${RESTARTS:-100}
  up; namespace
  install
  pod=$(pods jsonpath='{.items[0].metadata.name}')
  rm -f "$out/stop"
  # As many frames as it explains between two restarts, or the backlog outlasts them.
  load --namespace vision --rate 0.5 --seconds 7200 --stop "$out/stop" >"$out/restarts.json" 2>"$out/restarts.log" &
  local loading=$!
  under_load
  for ((number = 1; number <= wanted; number++)); do
    name=SIGKILL
    ((number % 2)) || name=SIGTERM
    signal $name
    k -n vision wait --timeout=60s --for=jsonpath='{.status.initContainerStatuses[0].restartCount}'=$number \
      "pod/$pod" >/dev/null
    k -n vision wait --timeout=60s --for=condition=Ready "pod/$pod" >/dev/null
    # At any moment of a stream's life.
    sleep "$((RANDOM % 2)).$((RANDOM % 10))"
  done
  touch "$out/stop"
  wait $loading || die "frames were lost in $wanted restarts: $(cat "$out/restarts.json")"
  say "$wanted restarts: $(cat "$out/restarts.json")"
  [[ $(restarts_of) == "$wanted" ]] || die "camlens was restarted $(restarts_of) times, not $wanted"
  [[ $(neighbour_restarts) == 0 ]] || die "the model server was restarted with camlens"
  if pods json | grep OOMKilled; then die "a container had not enough memory"; fi
}

answered() { # answered IP: frames that camlens there has answered
  cluster run "$dir" curl -sf --max-time 5 "http://$1:9465/metrics" |
    awk '/^camlens_frame_ended_total.*camlens_outcome="answered"/ { sum += $NF } END { printf "%d", sum }'
}

under_load() { # waits until a pod answers frames
  local ip _
  for _ in $(seq 120); do
    for ip in $(pods jsonpath='{.items[*].status.podIP}'); do
      if (($(answered "$ip") > 5)); then return; fi
    done
    sleep 0.5
  done
  die "no frame was answered within a minute"
}

hangs() { # camlens stops to run: the kubelet sees it and restarts it
  local pod
  up; namespace
  install
  pod=$(pods jsonpath='{.items[0].metadata.name}')
  rm -f "$out/stop"
  load --namespace vision --seconds 600 --stop "$out/stop" >"$out/hangs.json" & local loading=$!
  under_load
  signal SIGSTOP
  k -n vision wait --timeout=120s --for=jsonpath='{.status.initContainerStatuses[0].restartCount}'=1 "pod/$pod" \
    >/dev/null || die "a camlens that hangs was not restarted"
  k -n vision wait --timeout=60s --for=condition=Ready "pod/$pod" >/dev/null
  sleep 2
  touch "$out/stop"
  wait $loading || die "frames were lost when camlens hung: $(cat "$out/hangs.json")"
  say "hung and restarted: $(cat "$out/hangs.json")"
  [[ $(neighbour_restarts) == 0 ]] || die "the model server was restarted with camlens"
}

headless() { # the API server stands still: open streams go on
  local ip process before
  up; namespace
  install
  ip=$(pods jsonpath='{.items[0].status.podIP}')
  rm -f "$out/stop"
  load --namespace vision --seconds 600 --stop "$out/stop" >"$out/headless.json" & local loading=$!
  under_load
  process=$(cut -d' ' -f1 "$dir/run/pid/kube-apiserver")
  kill -STOP "$process"
  before=$(answered "$ip")
  sleep 10
  before=$(($(answered "$ip") - before))
  kill -CONT "$process"
  ((before > 0)) || die "no frame was answered while the API server stood still"
  touch "$out/stop"
  wait $loading || die "frames were lost without an API server: $(cat "$out/headless.json")"
  say "$before frames answered in 10 s without an API server: $(cat "$out/headless.json")"
  [[ $(restarts_of) == 0 ]] || die "camlens was restarted"
}

roll() { # a rolling update of two pods under load
  up; namespace
  install --set replicas=2
  rm -f "$out/stop"
  load --namespace vision --seconds 600 --stop "$out/stop" >"$out/roll.json" & local loading=$!
  under_load
  install --set replicas=2,config.limits.max_batch=4
  sleep 3
  touch "$out/stop"
  wait $loading || die "frames were lost in a rolling update: $(cat "$out/roll.json")"
  say "rolling update: $(cat "$out/roll.json")"
}

release() { cluster run "$dir" "$helm" --namespace vision "$@" >>"$out/helm.log" 2>&1; }

upgrade() { # deploy/kubernetes.md's commands under load: install, upgrade, rollback, and an upgrade that cannot start
  local chart=(camlens deploy/chart --values "$here/values.yaml" --set replicas=2 --wait)
  up; namespace
  release install "${chart[@]}" --timeout 180s || die "helm install failed: see $out/helm.log"
  rm -f "$out/stop"
  load --namespace vision --seconds 1200 --stop "$out/stop" >"$out/upgrade.json" & local loading=$!
  under_load
  release upgrade "${chart[@]}" --timeout 180s --set config.limits.max_batch=4 || die "helm upgrade failed"
  grep -q 'max_batch = 4' <<<"$(configuration)" || die "the upgrade did not change the configuration"
  if release upgrade "${chart[@]}" --timeout 15s --set image.tag=missing; then die "a missing image was rolled out"; fi
  [[ $(k -n vision get deployment camlens -o jsonpath='{.status.availableReplicas}') == 2 ]] ||
    die "an upgrade that cannot start took pods away"
  release rollback camlens 1 --wait --timeout 180s || die "helm rollback failed"
  k -n vision rollout status deployment/camlens --timeout=180s >/dev/null
  if grep -q max_batch <<<"$(configuration)"; then die "the rollback did not bring the configuration back"; fi
  sleep 2
  touch "$out/stop"
  wait $loading || die "frames were lost in upgrade and rollback: $(cat "$out/upgrade.json")"
  say "upgrade, failed upgrade, rollback: $(cat "$out/upgrade.json")"
}

configuration() { k -n vision get configmap camlens -o jsonpath='{.data.camlens\.toml}'; }

drain() { # the only node is drained under load: the budget keeps one of two pods until the node is back
  local answer
  up; namespace
  install --set replicas=2
  rm -f "$out/stop"
  load --namespace vision --seconds 600 --stop "$out/stop" >"$out/drain.json" & local loading=$!
  under_load
  answer=$(k drain real --ignore-daemonsets --delete-emptydir-data --timeout=25s 2>&1) &&
    die "the node was drained in spite of the budget"
  grep -q "disruption budget" <<<"$answer" || die "the drain failed for another reason: $answer"
  [[ $(k -n vision get deployment camlens -o jsonpath='{.status.readyReplicas}') == 1 ]] ||
    die "not one pod is ready while the node is drained"
  k uncordon real >/dev/null
  k -n vision rollout status deployment/camlens --timeout=120s >/dev/null
  touch "$out/stop"
  wait $loading || die "frames were lost in a drain: $(cat "$out/drain.json")"
  say "drain and uncordon: $(cat "$out/drain.json")"
}
