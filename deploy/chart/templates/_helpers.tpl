{{- /* Names, labels, and the values that follow from the mode. Each template takes the chart's context. */ -}}

{{- define "camlens.name" -}}
{{- if .Values.name -}}
{{- .Values.name | trunc 63 | trimSuffix "-" -}}
{{- else if contains "camlens" .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-camlens" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "camlens.selectorLabels" -}}
app.kubernetes.io/name: camlens
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Selects the pods; KServe makes them, and labels them with the InferenceService's name. */ -}}
{{- define "camlens.podSelector" -}}
{{- if eq .Values.mode "kserve" -}}
serving.kserve.io/inferenceservice: {{ include "camlens.name" . }}
{{- else -}}
{{- include "camlens.selectorLabels" . -}}
{{- end -}}
{{- end }}

{{- define "camlens.labels" -}}
{{ include "camlens.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end }}

{{- define "camlens.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- $tag := .Values.image.tag | default (printf "%s%s" .Chart.AppVersion (ternary "-cuda" "" .Values.gpu.enabled)) -}}
{{- printf "%s:%s" .Values.image.repository $tag -}}
{{- end -}}
{{- end }}

{{- /* "true" or "" */ -}}
{{- define "camlens.onPod" -}}
{{- if eq .Values.listen.scope "auto" -}}
{{- if eq .Values.mode "standalone" }}true{{ end -}}
{{- else if eq .Values.listen.scope "pod" }}true{{ end -}}
{{- end }}

{{- define "camlens.hasSocket" -}}
{{- if eq (toString .Values.listen.socket) "auto" -}}
{{- if ne .Values.mode "standalone" }}true{{ end -}}
{{- else if .Values.listen.socket }}true{{ end -}}
{{- end }}

{{- define "camlens.inBackground" -}}
{{- if eq (toString .Values.background) "auto" -}}
{{- if and (ne .Values.mode "standalone") (not .Values.gpu.enabled) }}true{{ end -}}
{{- else if .Values.background }}true{{ end -}}
{{- end }}

{{- /* The longest end of a pod: the hooks of all containers start together; then the containers beside camlens end,
       then camlens drains, and its last telemetry has three seconds. */ -}}
{{- define "camlens.gracePeriod" -}}
{{- with .Values.shutdown -}}
{{- $before := int .settleSeconds -}}
{{- if ne $.Values.mode "standalone" -}}{{- $before = max $before (int .serverSeconds) -}}{{- end -}}
{{- add $before (int .drainSeconds) 5 -}}
{{- end -}}
{{- end }}

{{- /* What follows from two values together, which the schema cannot say in a sentence. */ -}}
{{- define "camlens.check" -}}
{{- $v := .Values -}}
{{- $wrong := list -}}
{{- if and (include "camlens.onPod" .) (not $v.tls.secret) (not $v.insecure) -}}
{{- $wrong = append $wrong "camlens would serve beyond loopback in plaintext: set tls.secret, or insecure: true where the network is trusted" -}}
{{- end -}}
{{- if and $v.tls.clientCaKey (not $v.tls.secret) -}}
{{- $wrong = append $wrong "tls.clientCaKey needs tls.secret, the Secret that holds it" -}}
{{- end -}}
{{- if and (eq $v.models.source "claim") (not $v.models.claim.name) -}}
{{- $wrong = append $wrong "models.source: claim needs models.claim.name" -}}
{{- end -}}
{{- if and (eq $v.models.source "initContainer") (not $v.models.initContainer.image) -}}
{{- $wrong = append $wrong "models.source: initContainer needs models.initContainer.image" -}}
{{- end -}}
{{- if eq $v.models.source "image" -}}
{{- if not $v.models.image.reference -}}
{{- $wrong = append $wrong "models.source: image needs models.image.reference" -}}
{{- end -}}
{{- if semverCompare "<1.35.0-0" .Capabilities.KubeVersion.Version -}}
{{- $wrong = append $wrong (printf "models.source: image needs Kubernetes 1.35 or later (image volumes), and this is %s: use claim or initContainer" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $v.mode "sidecar") (not $v.server.containers) -}}
{{- $wrong = append $wrong "mode: sidecar needs server.containers, the model server's" -}}
{{- end -}}
{{- if and (eq $v.mode "kserve") (not $v.kserve.predictor) -}}
{{- $wrong = append $wrong "mode: kserve needs kserve.predictor, such as {model: {modelFormat: {name: pytorch}, storageUri: …}}" -}}
{{- end -}}
{{- if $v.gpu.enabled -}}
{{- if and (has $v.gpu.sharing (list "time-slicing" "mps" "claim")) (not $v.gpu.memoryLimit) -}}
{{- $wrong = append $wrong (printf "gpu.sharing: %s needs gpu.memoryLimit, such as 25%%: nothing else bounds what camlens takes from a shared card" $v.gpu.sharing) -}}
{{- end -}}
{{- if and (eq $v.gpu.sharing "mig") (not (contains "/mig-" $v.gpu.resource)) -}}
{{- $wrong = append $wrong (printf "gpu.sharing: mig needs a slice as gpu.resource, such as nvidia.com/mig-1g.10gb, not %s" $v.gpu.resource) -}}
{{- end -}}
{{- if and $v.gpu.mpsActiveThreadPercentage (ne $v.gpu.sharing "mps") -}}
{{- $wrong = append $wrong (printf "gpu.mpsActiveThreadPercentage needs gpu.sharing: mps, not %s" $v.gpu.sharing) -}}
{{- end -}}
{{- if and (eq $v.gpu.sharing "claim") (has $v.mode (list "standalone" "sidecar")) (not $v.gpu.claimTemplate) -}}
{{- $wrong = append $wrong "gpu.sharing: claim needs gpu.claimTemplate, the ResourceClaimTemplate of the card" -}}
{{- end -}}
{{- if and (eq $v.gpu.sharing "claim") (semverCompare "<1.34.0-0" .Capabilities.KubeVersion.Version) -}}
{{- $wrong = append $wrong (printf "gpu.sharing: claim needs Kubernetes 1.34 or later (dynamic resource allocation), and this is %s" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}
{{- with $v.autoscaling -}}
{{- if ne .kind "none" -}}
{{- if not (has $v.mode (list "standalone" "sidecar")) -}}
{{- $wrong = append $wrong (printf "autoscaling.kind: in %s mode the workload is not this chart's, and cannot be scaled here" $v.mode) -}}
{{- end -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- $wrong = append $wrong "autoscaling.minReplicas is more than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and (not .queueFrames) (not .deviceBusy) -}}
{{- $wrong = append $wrong "autoscaling.kind needs queueFrames or deviceBusy, or both" -}}
{{- end -}}
{{- end -}}
{{- if and (eq .kind "hpa") (lt (int .minReplicas) 1) -}}
{{- $wrong = append $wrong "autoscaling.minReplicas: a HorizontalPodAutoscaler keeps at least 1 pod; keda can keep none" -}}
{{- end -}}
{{- if and (eq .kind "keda") (not .prometheus) -}}
{{- $wrong = append $wrong "autoscaling.kind: keda needs autoscaling.prometheus, the server that it asks" -}}
{{- end -}}
{{- end -}}
{{- if and $v.monitoring.serviceMonitor (ne $v.mode "standalone") -}}
{{- $wrong = append $wrong (printf "monitoring.serviceMonitor: no Service shows camlens's metrics in %s mode; use monitoring.podMonitor" $v.mode) -}}
{{- end -}}
{{- if and (eq (toString $v.rollout.maxSurge) "0") (eq (toString $v.rollout.maxUnavailable) "0") -}}
{{- $wrong = append $wrong "rollout: with maxSurge and maxUnavailable both 0 no pod could ever be replaced" -}}
{{- end -}}
{{- if eq (int $v.listen.port) (int $v.probes.port) -}}
{{- $wrong = append $wrong "listen.port and probes.port are the same" -}}
{{- end -}}
{{- if $wrong -}}{{- fail (join "; " $wrong) -}}{{- end -}}
{{- end }}
