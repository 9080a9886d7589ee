{{/* The worker's environment: `settings` as ASSAY_<GROUP>__<FIELD>, and what the chart itself decides. */}}

{{/* A value as the settings parser reads it. YAML numbers arrive as floats: 25000000 must not become 2.5e+07. */}}
{{- define "assay.text" -}}
{{- if kindIs "slice" . -}}
{{- join "," . -}}
{{- else if and (kindIs "float64" .) (eq (floor .) .) -}}
{{- printf "%d" (int64 .) -}}
{{- else -}}
{{- . | toString -}}
{{- end -}}
{{- end -}}

{{/* "true" when a secret setting of this name is given: (dict "root" $ "name" "redis.url") */}}
{{- define "assay.hasSecret" -}}
{{- if or (hasKey .root.Values.secrets.keys .name) (hasKey .root.Values.secrets.values .name) }}true{{ end -}}
{{- end -}}

{{- define "assay.secretName" -}}
{{- default (include "assay.fullname" .) .Values.secrets.existingSecret -}}
{{- end -}}

{{/* Setting -> key in the Secret, as YAML. */}}
{{- define "assay.secretKeys" -}}
{{- if .Values.secrets.existingSecret -}}
{{- toYaml .Values.secrets.keys -}}
{{- else -}}
{{- $keys := dict -}}
{{- range $name, $_ := .Values.secrets.values }}{{ $_ = set $keys $name $name }}{{ end -}}
{{- toYaml $keys -}}
{{- end -}}
{{- end -}}

{{/* The ConfigMap with the list of trusted signers: one of yours, or the chart's own for an inline list; else nothing. */}}
{{- define "assay.trustConfigMap" -}}
{{- if .Values.evidence.c2paTrust.pem -}}
{{- include "assay.fullname" . }}-trust
{{- else -}}
{{- .Values.evidence.c2paTrust.configMapName -}}
{{- end -}}
{{- end -}}

{{- define "assay.tritonUrl" -}}
{{- if eq .Values.triton.mode "sidecar" -}}
127.0.0.1:8001
{{- else if eq .Values.triton.mode "service" -}}
{{ include "assay.fullname" . }}-triton:8001
{{- else -}}
{{ .Values.settings.triton.url }}
{{- end -}}
{{- end -}}

{{/* Everything for the ConfigMap, as YAML. */}}
{{- define "assay.environment" -}}
{{- $env := dict -}}
{{- range $group, $fields := .Values.settings -}}
{{- range $field, $value := $fields -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $_ := set $env (printf "ASSAY_%s__%s" (upper $group) (upper $field)) (include "assay.text" $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if include "assay.hasSecret" (dict "root" . "name" "redis.url") -}}
{{- $_ := unset $env "ASSAY_REDIS__URL" -}}
{{- end -}}
{{- $_ := set $env "ASSAY_HTTP__HOST" "0.0.0.0" -}}
{{- $_ := set $env "ASSAY_HTTP__PORT" "9464" -}}
{{- $_ := set $env "ASSAY_TRITON__URL" (include "assay.tritonUrl" .) -}}
{{- if not (hasKey $env "ASSAY_TRITON__SHARED_MEMORY") -}}
{{- $_ := set $env "ASSAY_TRITON__SHARED_MEMORY" (ternary "system" "off" (eq .Values.triton.mode "sidecar")) -}}
{{- end -}}
{{- if not (hasKey $env "ASSAY_DECODE__DEVICE") -}}
{{- $_ := set $env "ASSAY_DECODE__DEVICE" (ternary "gpu" "cpu" .Values.gpu.worker) -}}
{{- end -}}
{{- if .Values.policy.toml -}}
{{- $_ := set $env "ASSAY_POLICY__PATH" "/etc/assay/policy/policy.toml" -}}
{{- end -}}
{{- if .Values.policy.shadowToml -}}
{{- $_ := set $env "ASSAY_POLICY__SHADOW_PATH" "/etc/assay/policy/shadow.toml" -}}
{{- end -}}
{{- if include "assay.trustConfigMap" . -}}
{{- $_ := set $env "ASSAY_EVIDENCE__C2PA_TRUST_PATH" "/etc/assay/trust/c2pa.pem" -}}
{{- end -}}
{{- range $server := list "kafka" "redis" "triton" -}}
{{- with index $.Values.tls $server -}}
{{- if .secretName -}}
{{- $_ := set $env (printf "ASSAY_%s__SSL_CA_PATH" (upper $server)) (printf "/etc/assay/tls/%s/ca.crt" $server) -}}
{{- if .certKey -}}
{{- $_ := set $env (printf "ASSAY_%s__SSL_CERT_PATH" (upper $server)) (printf "/etc/assay/tls/%s/tls.crt" $server) -}}
{{- $_ := set $env (printf "ASSAY_%s__SSL_KEY_PATH" (upper $server)) (printf "/etc/assay/tls/%s/tls.key" $server) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if .Values.tls.references.secretName -}}
{{- $_ := set $env "ASSAY_REFERENCES__HTTPS_CA_PATH" "/etc/assay/tls/references/ca.crt" -}}
{{- end -}}
{{- toYaml $env -}}
{{- end -}}

{{/* Variables that name the files of the secret settings. */}}
{{- define "assay.secretVariables" -}}
{{- range $name, $_ := include "assay.secretKeys" . | fromYaml }}
- name: ASSAY_{{ $name | replace "." "__" | upper }}_FILE
  value: /run/secrets/assay/{{ $name }}
{{- end }}
{{- end -}}

{{/* Mounts of everything that the settings name by path; the volumes below match. */}}
{{- define "assay.settingsMounts" -}}
{{- if include "assay.secretKeys" . | fromYaml }}
- {name: secrets, mountPath: /run/secrets/assay, readOnly: true}
{{- end }}
{{- if or .Values.policy.toml .Values.policy.shadowToml }}
- {name: policy, mountPath: /etc/assay/policy, readOnly: true}
{{- end }}
{{- if include "assay.trustConfigMap" . }}
- {name: trust, mountPath: /etc/assay/trust, readOnly: true}
{{- end }}
{{- range $server := list "kafka" "redis" "triton" "references" }}
{{- if (index $.Values.tls $server).secretName }}
- {name: tls-{{ $server }}, mountPath: /etc/assay/tls/{{ $server }}, readOnly: true}
{{- end }}
{{- end }}
{{- end -}}

{{- define "assay.settingsVolumes" -}}
{{- with include "assay.secretKeys" . | fromYaml }}
- name: secrets
  secret:
    secretName: {{ include "assay.secretName" $ | quote }}
    defaultMode: 0440
    items:
      {{- range $name, $key := . }}
      - {key: {{ $key | quote }}, path: {{ $name }}}
      {{- end }}
{{- end }}
{{- if or .Values.policy.toml .Values.policy.shadowToml }}
- name: policy
  configMap: {name: {{ include "assay.fullname" . }}-policy}
{{- end }}
{{- with include "assay.trustConfigMap" . }}
- name: trust
  configMap:
    name: {{ . | quote }}
    items: [{key: {{ ternary "c2pa.pem" $.Values.evidence.c2paTrust.key (not (empty $.Values.evidence.c2paTrust.pem)) | quote }}, path: c2pa.pem}]
{{- end }}
{{- range $server := list "kafka" "redis" "triton" "references" }}
{{- with index $.Values.tls $server }}
{{- if .secretName }}
- name: tls-{{ $server }}
  secret:
    secretName: {{ .secretName | quote }}
    defaultMode: 0440
    items:
      - {key: {{ .caKey | quote }}, path: ca.crt}
      {{- if .certKey }}
      - {key: {{ .certKey | quote }}, path: tls.crt}
      - {key: {{ .keyKey | quote }}, path: tls.key}
      {{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
