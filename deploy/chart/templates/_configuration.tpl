{{- /* camlens.toml: what follows from the values, and `config` over it. */ -}}
{{- define "camlens.configuration" -}}
{{- $listen := list (printf "%s:%d" (ternary "0.0.0.0" "127.0.0.1" (eq (include "camlens.onPod" .) "true")) (int .Values.listen.port)) -}}
{{- if include "camlens.hasSocket" . -}}{{- $listen = append $listen "unix:/run/camlens/camlens.sock" -}}{{- end -}}
{{- $server := dict "listen" $listen "insecure" .Values.insecure "drain_timeout_s" .Values.shutdown.drainSeconds -}}
{{- if eq .Values.mode "standalone" -}}{{- $_ := set $server "max_connection_age_s" 600 -}}{{- end -}}
{{- if .Values.tokens.secret -}}
{{- $_ := set $server "token_file" (printf "/etc/camlens-tokens/%s" .Values.tokens.key) -}}
{{- end -}}
{{- $tls := dict -}}
{{- if .Values.tls.secret -}}
{{- $tls = dict "certificate" "/etc/camlens-tls/tls.crt" "key" "/etc/camlens-tls/tls.key" -}}
{{- with .Values.tls.clientCaKey -}}{{- $_ := set $tls "client_ca" (printf "/etc/camlens-tls/%s" .) -}}{{- end -}}
{{- end -}}
{{- $device := dict "name" (ternary "cuda" "cpu" .Values.gpu.enabled) "background" (eq (include "camlens.inBackground" .) "true") -}}
{{- if .Values.gpu.enabled -}}
{{- $_ := set $device "libraries" (list "/usr/local/lib") -}}
{{- with .Values.gpu.memoryLimit -}}{{- $_ := set $device "memory_limit" . -}}{{- end -}}
{{- end -}}
{{- if .Values.cache.enabled -}}{{- $_ := set $device "cache" "/var/cache/camlens" -}}{{- end -}}
{{- $telemetry := dict -}}
{{- with .Values.telemetry.otlpEndpoint -}}{{- $telemetry = dict "otlp_endpoint" . "trace_ratio" $.Values.telemetry.traceRatio -}}{{- end -}}
{{- $all := dict
  "server" $server
  "server.tls" $tls
  "models" (dict "repository" .Values.models.path)
  "device" $device
  "limits" (dict)
  "telemetry" $telemetry
  "probes" (dict "listen" (printf "0.0.0.0:%d" (int .Values.probes.port)))
-}}
{{- range $section, $keys := mergeOverwrite $all (deepCopy .Values.config) -}}
{{- if $keys }}
[{{ $section }}]
{{- range $key, $value := $keys }}
{{- if and (kindIs "float64" $value) (eq $value (floor $value)) }}
{{ $key }} = {{ int64 $value }}
{{- else }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{ end }}
{{- end }}
{{- end }}
