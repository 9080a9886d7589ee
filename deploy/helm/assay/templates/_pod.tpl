{{/* What every pod of the chart shares: identity, security, placement. */}}

{{/* One uid for all containers: shared memory is created 0600, and Triton must open what the worker made. */}}
{{- define "assay.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "assay.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The head of a pod's spec: (dict "root" $ "placed" .Values.worker) */}}
{{- define "assay.podHead" -}}
serviceAccountName: {{ include "assay.serviceAccountName" .root | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- include "assay.podSecurity" . | nindent 2 }}
{{- with .placed.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .placed.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with .placed.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .placed.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .placed.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* (dict "root" $ "component" "worker" "spread" .Values.worker.spread) */}}
{{- define "assay.spread" -}}
{{- $rules := list -}}
{{- range $key, $how := dict "kubernetes.io/hostname" .spread.node "topology.kubernetes.io/zone" .spread.zone -}}
{{- if ne $how "off" -}}
{{- $selector := dict "matchLabels" (include "assay.selector" $ | fromYaml) -}}
{{- $rules = append $rules (dict "maxSkew" 1 "topologyKey" $key "whenUnsatisfiable" $how "labelSelector" $selector "matchLabelKeys" (list "pod-template-hash")) -}}
{{- end -}}
{{- end -}}
{{- with $rules -}}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* Resources with GPUs: (dict "resources" … "gpu" "nvidia.com/gpu" "count" 1); count 0 adds none. */}}
{{- define "assay.resources" -}}
{{- $all := deepCopy .resources -}}
{{- if gt (int .count) 0 -}}
{{- range $kind := list "requests" "limits" -}}
{{- $_ := set $all $kind (merge (dict $.gpu (int $.count)) (default dict (get $all $kind))) -}}
{{- end -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}
