#!/usr/bin/env bash
# Steps of run.sh: an archive as an indexed Job, and a thousand replicas.

volumes() { # volumes FOLDER: claims `archive`, `models` and `maps` on folders of this machine
  local folder=$1 name
  for name in archive models maps; do
    k apply -f - >/dev/null <<END
apiVersion: v1
kind: PersistentVolume
metadata: {name: $name}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteMany]
  storageClassName: ""
  persistentVolumeReclaimPolicy: Retain
  claimRef: {namespace: vision, name: $name}
  hostPath: {path: "$folder/$name"}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $name, namespace: vision}
spec:
  accessModes: [ReadWriteMany]
  storageClassName: ""
  resources: {requests: {storage: 1Gi}}
END
  done
}

job() { # deploy/job.yaml over four folders: one has a broken picture, and the pod of another is evicted
  local folder=$out/archive shards=4 each=40 index number picture pod status
  local photographs=(deploy/demo-assets/photographs/*.jpg)
  up; namespace
  rm -rf "$folder"
  mkdir -p "$folder/maps" "$folder/models"
  cp -rL deploy/models/. "$folder/models/"
  for ((index = 0; index < shards; index++)); do
    mkdir -p "$folder/archive/shard-$index"
    for ((number = 0; number < each; number++)); do
      picture=${photographs[$((number % ${#photographs[@]}))]}
      cp "$picture" "$folder/archive/shard-$index/$number-$(basename "$picture")"
    done
  done
  head -c 500 "${photographs[0]}" >"$folder/archive/shard-3/broken.jpg"
  chmod -R u=rwX,go=rX "$folder"
  chmod 777 "$folder/maps"
  k delete persistentvolume archive models maps --ignore-not-found --wait >/dev/null 2>&1
  volumes "$folder"
  sed -e "s/^  completions: .*/  completions: $shards/; s/^  maxFailedIndexes: .*/  maxFailedIndexes: $shards/" \
    -e "s/^  parallelism: .*/  parallelism: 2/" \
    -e 's/requests: {cpu: "2", memory: 1Gi}/requests: {cpu: 200m, memory: 256Mi}/' \
    -e 's#image: camlens:.*#image: localhost/camlens:test#' deploy/job.yaml | k apply --server-side -f - >/dev/null
  pod=$(until k -n vision get pods -l batch.kubernetes.io/job-completion-index=0 -o name | grep .; do sleep 0.2; done)
  k -n vision wait --for=jsonpath='{.status.phase}'=Running "$pod" --timeout=60s >/dev/null
  k create --raw "/api/v1/namespaces/vision/pods/${pod#pod/}/eviction" -f - >/dev/null <<END
{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "${pod#pod/}", "namespace": "vision"}}
END
  k -n vision wait --for=condition=Failed job/camlens-archive --timeout=300s >/dev/null
  status=$(k -n vision get job camlens-archive -o jsonpath='{.status}')
  say "the Job ended: $status"
  grep -q '"completedIndexes":"0-2"' <<<"$status" || die "not the sound shards alone are done"
  grep -q '"failedIndexes":"3"' <<<"$status" || die "the shard with a broken picture has not failed"
  # A shard that was evicted begins again and is no failure; the broken one is not tried again.
  grep -q '"failed":1,' <<<"$status" || die "the Job counts other failures than one"
  for ((index = 0; index < shards; index++)); do
    number=$(find "$folder/maps/shard-$index" -name '*.jpg' -size +1k | wc -l)
    ((number == each)) || die "shard $index has $number pictures for $each"
  done
  k -n vision delete job camlens-archive --wait >/dev/null
  say "$((shards * each)) pictures of $shards shards; one evicted and done again, one failed for its broken picture"
}

available() { k -n vision get deployment camlens -o jsonpath='{.status.availableReplicas}'; }

ready_again() { # ready_again N FLOOR: until N are available; never fewer than FLOOR are
  local now
  until now=$(available) && ((${now:-0} == $1)) &&
    grep -q "successfully rolled out" <<<"$(k -n vision rollout status deployment/camlens --watch=false)"; do
    ((${now:-0} >= $2)) || die "only $now of $1 replicas are available, and $2 must be"
    ((SECONDS < deadline)) || die "only ${now:-0} of $1 replicas are available"
    sleep 0.5
  done
}

scale() { # simulated replicas scale up, roll, and lose a node; nothing runs in them, the control plane is real
  local wanted=${REPLICAS:-1000} nodes began deadline lost
  nodes=$((wanted / 10 + 20))
  local options=(--set "replicas=2,rollout.maxSurge=10%,rollout.maxUnavailable=0,pod.nodeSelector.type=kwok"
    --set-json 'pod.tolerations=[{"key": "kwok.x-k8s.io/node", "operator": "Exists"}]')
  up; namespace
  cluster fake-nodes "$dir" $nodes >>"$out/cluster.log"
  install "${options[@]}"
  deadline=$((SECONDS + 300)) began=$(date +%s%N)
  k -n vision scale deployment/camlens --replicas="$wanted" >/dev/null
  ready_again "$wanted" 2
  say "2 to $wanted simulated replicas: $((($(date +%s%N) - began) / 1000000)) ms"
  deadline=$((SECONDS + 600)) began=$(date +%s%N)
  render --namespace vision --values $here/values.yaml "${options[@]}" --set "replicas=$wanted" \
    --set config.limits.max_batch=4 | k apply --server-side --force-conflicts -f - >/dev/null
  ready_again "$wanted" "$wanted"
  say "rolling update of $wanted: $((($(date +%s%N) - began) / 1000000)) ms, never fewer than $wanted available"
  lost=$(k -n vision get pods --field-selector spec.nodeName=fake-0000 -o name | wc -l)
  ((lost > 0)) || die "no replica is on the node that is to be lost"
  deadline=$((SECONDS + 300)) began=$(date +%s%N)
  k delete node fake-0000 --wait=false >/dev/null
  until (($(available) < wanted)); do
    ((SECONDS < deadline)) || die "the node's $lost replicas are still counted"
    sleep 0.2
  done
  ready_again "$wanted" $((wanted - lost))
  say "a node with $lost of them is lost: $((($(date +%s%N) - began) / 1000000)) ms until $wanted are available again"
  k -n vision delete deployment camlens --wait >/dev/null
  cluster fake-nodes "$dir" 0 >>"$out/cluster.log"
}
