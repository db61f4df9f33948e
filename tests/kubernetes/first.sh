#!/usr/bin/env bash
# A step of run.sh: deploy/kubernetes.md's first commands, as a new operator runs them.

first() { # from `helm install` to the first explanation, its trace and the metrics of a panel
  local node=10.99.0.1 spans=$out/spans answer=$out/answer.json ip trace metric
  local camlens=(cluster run "$dir" "$PWD/target/release/camlens")
  up; namespace
  rm -rf "$spans" "$out/first"
  cluster run "$dir" python3 "$here/receiver.py" $node 4318 "$spans" & local receiving=$!
  release install camlens deploy/chart --wait --timeout 180s --set insecure=true,pod.dnsPolicy=Default \
    --set image.repository=localhost/camlens,image.tag=test,image.pullPolicy=Never \
    --set monitoring.dashboard=true,telemetry.traceRatio=1 \
    --set "telemetry.otlpEndpoint=http://$node:4318,config.telemetry.otlp_protocol=http/protobuf" ||
    die "helm install failed: see $out/helm.log"
  k -n vision port-forward deployment/camlens 8033 >"$out/forward.log" & local forwarding=$!
  "${camlens[@]}" health --server 127.0.0.1:8033 --wait 30
  "${camlens[@]}" explain deploy/demo-assets/photographs/rocket.jpg --server 127.0.0.1:8033 --out "$out/first" \
    --json >"$answer"
  [[ -s $out/first/rocket.overlay.png ]] || die "the first explanation left no picture"
  trace=$(sed -n 's/.*"trace_id": "\([0-9a-f]*\)".*/\1/p' "$answer" | head -n 1)
  # Into files: a program whose output grep -q leaves unread may fail.
  "${camlens[@]}" trace deploy/demo-assets/photographs/rocket.jpg --frames 5 --server 127.0.0.1:8033 >"$out/stages"
  grep -q '^forward' "$out/stages" || die "camlens trace shows no stages"
  for _ in $(seq 100); do
    ! grep -q "$trace" "$spans" 2>/dev/null || break
    sleep 0.2
  done
  grep -q "$trace" "$spans" || die "the trace $trace of the first explanation has not come"
  metric=camlens_frame_stage_duration_seconds
  ip=$(pods jsonpath='{.items[0].status.podIP}')
  k -n vision get configmaps -l grafana_dashboard -o yaml >"$out/dashboard.yaml"
  grep -q $metric "$out/dashboard.yaml" || die "the dashboard has no panel of $metric"
  cluster run "$dir" curl -sf "http://$ip:9465/metrics" >"$out/metrics"
  grep -q "^${metric}_count.* [1-9]" "$out/metrics" || die "no $metric"
  kill $forwarding $receiving
  say "the first explanation, its trace $trace and its stages in the metrics of a panel"
}
