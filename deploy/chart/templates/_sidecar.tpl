{{- /*
Templates for other charts. Each takes the context of this chart: `.Subcharts.camlens` in a chart that depends on it.

  camlens.sidecar    items of a pod's initContainers: camlens as a native sidecar, and what fetches its models
  camlens.volumes    items of the pod's volumes
  camlens.mounts     items of a neighbour's volumeMounts: camlens's socket, and /dev/shm
  camlens.annotations  of the pod: a new configuration rolls the pods
  camlens.gracePeriod  the pod's terminationGracePeriodSeconds
*/ -}}

{{- define "camlens.sidecar" -}}
{{- if eq .Values.models.source "initContainer" }}
{{ include "camlens.modelContainer" . }}
{{- end }}
{{ include "camlens.container" (dict "context" . "restartPolicy" "Always") }}
{{- end }}

{{- define "camlens.modelContainer" -}}
{{- with .Values.models.initContainer -}}
- name: camlens-models
  image: {{ .image | quote }}
  imagePullPolicy: {{ $.Values.image.pullPolicy }}
  {{- with .command }}
  command: {{ toJson . }}
  {{- end }}
  {{- with .args }}
  args: {{ toJson . }}
  {{- end }}
  {{- with .env }}
  env: {{ toJson . }}
  {{- end }}
  resources:
    requests: {cpu: 50m, memory: 64Mi}
    limits: {memory: 512Mi}
  securityContext:
    {{- include "camlens.securityContext" $ | nindent 4 }}
  volumeMounts:
    - {name: camlens-models, mountPath: {{ $.Values.models.path | quote }}}
{{- end }}
{{- end }}

{{- define "camlens.securityContext" -}}
runAsUser: 65532
runAsGroup: 65532
runAsNonRoot: true
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* `.context`: the chart's; `.restartPolicy`: of a native sidecar */ -}}
{{- define "camlens.container" -}}
{{- $ := .context -}}
{{- $values := $.Values -}}
- name: camlens
  image: {{ include "camlens.image" $ | quote }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  {{- with .restartPolicy }}
  restartPolicy: {{ . }}
  {{- end }}
  args: [serve, --config, /etc/camlens/camlens.toml]
  env:
    - {name: K8S_POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: K8S_POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
    - {name: K8S_NAMESPACE_NAME, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: K8S_NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: K8S_CONTAINER_NAME, value: camlens}
    - {name: CAMLENS_LOG, value: {{ $values.telemetry.log | quote }}}
    - {name: CAMLENS_LOG_FORMAT, value: {{ $values.telemetry.logFormat }}}
    {{- if and $values.gpu.enabled (eq $values.gpu.sharing "mps") $values.gpu.mpsActiveThreadPercentage }}
    - {name: CUDA_MPS_ACTIVE_THREAD_PERCENTAGE, value: {{ $values.gpu.mpsActiveThreadPercentage | quote }}}
    {{- end }}
    {{- with $values.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    {{- if include "camlens.onPod" $ }}
    - {name: camlens-grpc, containerPort: {{ $values.listen.port }}, protocol: TCP}
    {{- end }}
    - {name: camlens-probes, containerPort: {{ $values.probes.port }}, protocol: TCP}
  {{- with $values.probes }}
  {{- if .holdPod }}
  startupProbe:
    {{- include "camlens.probe" (dict "probes" . "path" "/readyz" "service" "") | nindent 4 }}
    periodSeconds: 2
    timeoutSeconds: 2
    failureThreshold: {{ div (add (int .startupSeconds) 1) 2 }}
  readinessProbe:
    {{- include "camlens.probe" (dict "probes" . "path" "/readyz" "service" "") | nindent 4 }}
    periodSeconds: {{ .periodSeconds }}
    timeoutSeconds: 3
    failureThreshold: 2
  {{- end }}
  livenessProbe:
    # Only /livez: a model that cannot be loaded is no reason to restart.
    httpGet: {path: /livez, port: camlens-probes}
    {{- if not .holdPod }}
    initialDelaySeconds: 5
    {{- end }}
    periodSeconds: {{ .periodSeconds }}
    timeoutSeconds: 5
    failureThreshold: 6
  {{- end }}
  lifecycle: {preStop: {sleep: {seconds: {{ $values.shutdown.settleSeconds }}}}}
  resources:
    {{- $requests := dict "memory" $values.resources.requests.memory }}
    {{- $cpu := $values.resources.requests.cpu }}
    {{- if eq (toString $cpu) "auto" }}{{ $cpu = ternary "50m" "1" (eq (include "camlens.inBackground" $) "true") }}{{ end }}
    {{- $_ := set $requests "cpu" (toString $cpu) }}
    {{- $limits := dict "memory" $values.resources.limits.memory }}
    {{- with $values.resources.limits.cpu }}{{ $_ := set $limits "cpu" (toString .) }}{{ end }}
    {{- if and $values.gpu.enabled (ne $values.gpu.sharing "claim") }}
    {{- $_ := set $limits $values.gpu.resource (toString (int $values.gpu.count)) }}
    {{- end }}
    requests: {{ toJson $requests }}
    limits: {{ toJson $limits }}
    {{- if and $values.gpu.enabled (eq $values.gpu.sharing "claim") }}
    claims: [{name: gpu}]
    {{- end }}
  securityContext:
    {{- include "camlens.securityContext" $ | nindent 4 }}
  volumeMounts:
    - {name: camlens-config, mountPath: /etc/camlens, readOnly: true}
    {{- include "camlens.modelMount" $ | nindent 4 }}
    {{- if include "camlens.hasSocket" $ }}
    - {name: camlens-socket, mountPath: /run/camlens}
    {{- end }}
    {{- if $values.shm.enabled }}
    - {name: camlens-shm, mountPath: /dev/shm}
    {{- end }}
    {{- if $values.cache.enabled }}
    - {name: camlens-cache, mountPath: /var/cache/camlens}
    {{- end }}
    {{- if $values.tls.secret }}
    - {name: camlens-tls, mountPath: /etc/camlens-tls, readOnly: true}
    {{- end }}
    {{- if $values.tokens.secret }}
    - {name: camlens-tokens, mountPath: /etc/camlens-tokens, readOnly: true}
    {{- end }}
{{- end }}

{{- define "camlens.probe" -}}
{{- if eq .probes.protocol "grpc" -}}
grpc: {port: {{ .probes.port }}}
{{- else -}}
httpGet: {path: {{ .path }}, port: camlens-probes}
{{- end -}}
{{- end }}

{{- define "camlens.modelMount" -}}
{{- if ne .Values.models.source "included" -}}
- name: camlens-models
  mountPath: {{ .Values.models.path | quote }}
  readOnly: true
  {{- if and (eq .Values.models.source "claim") .Values.models.claim.subPath }}
  subPath: {{ .Values.models.claim.subPath | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "camlens.mounts" -}}
{{- if include "camlens.hasSocket" . }}
- {name: camlens-socket, mountPath: /run/camlens}
{{- end }}
{{- if .Values.shm.enabled }}
- {name: camlens-shm, mountPath: /dev/shm}
{{- end }}
{{- if .Values.server.mountModels }}
{{ include "camlens.modelMount" . }}
{{- end }}
{{- end }}

{{- define "camlens.volumes" -}}
- name: camlens-config
  configMap: {name: {{ include "camlens.name" . }}}
{{- if eq .Values.models.source "claim" }}
- name: camlens-models
  persistentVolumeClaim: {claimName: {{ .Values.models.claim.name | quote }}, readOnly: true}
{{- else if eq .Values.models.source "image" }}
- name: camlens-models
  image: {reference: {{ .Values.models.image.reference | quote }}, pullPolicy: {{ .Values.models.image.pullPolicy }}}
{{- else if eq .Values.models.source "initContainer" }}
- name: camlens-models
  emptyDir: {sizeLimit: {{ .Values.models.initContainer.sizeLimit }}}
{{- end }}
{{- if include "camlens.hasSocket" . }}
- name: camlens-socket
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- end }}
{{- if .Values.shm.enabled }}
- name: camlens-shm
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.shm.sizeLimit }}}
{{- end }}
{{- if .Values.cache.enabled }}
- name: camlens-cache
  {{- if .Values.cache.claim }}
  persistentVolumeClaim: {claimName: {{ .Values.cache.claim | quote }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .Values.cache.sizeLimit }}}
  {{- end }}
{{- end }}
{{- with .Values.tls.secret }}
- name: camlens-tls
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- with .Values.tokens.secret }}
- name: camlens-tokens
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- define "camlens.annotations" -}}
checksum/camlens.toml: {{ include "camlens.configuration" . | sha256sum | trunc 16 | quote }}
{{- end }}
