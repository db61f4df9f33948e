{{- /* What the pods of both Deployments have in common, below `spec.template.spec`. */ -}}
{{- define "camlens.podFields" -}}
automountServiceAccountToken: false
terminationGracePeriodSeconds: {{ include "camlens.gracePeriod" . }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with .Values.pod }}
{{- with .serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
securityContext:
  {{- toYaml .securityContext | nindent 2 }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
dnsPolicy: {{ .dnsPolicy }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml .topologySpreadConstraints | nindent 2 }}
{{- else if eq $.Values.mode "standalone" }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "camlens.selectorLabels" $ | nindent 8 }}
{{- end }}
{{- end }}
{{- if and .Values.gpu.enabled (eq .Values.gpu.sharing "claim") .Values.gpu.claimTemplate }}
resourceClaims:
  - {name: gpu, resourceClaimTemplateName: {{ .Values.gpu.claimTemplate | quote }}}
{{- end }}
{{- end }}
