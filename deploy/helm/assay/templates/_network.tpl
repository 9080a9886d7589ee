{{/* Rules of the NetworkPolicies that several pods share. */}}

{{/* A rule towards public addresses: (dict "root" $ "ports" (list 443)) */}}
{{- define "assay.outsideEgress" -}}
{{- $ports := list -}}
{{- range uniq .ports }}{{ $ports = append $ports (dict "port" . "protocol" "TCP") }}{{ end -}}
{{- dict "ports" $ports "to" (list (dict "ipBlock" (dict "cidr" "0.0.0.0/0" "except" .root.Values.networkPolicy.referencesExcept))) | toYaml -}}
{{- end -}}

{{/* A rule towards the buckets behind an endpoint, AWS's own where the URL is empty: (dict "root" $ "url" "http://minio.storage.svc:9000") */}}
{{- define "assay.bucketEgress" -}}
{{- $url := .url | default "" -}}
{{- $port := include "assay.authority" $url | regexFind ":[0-9]+$" | trimPrefix ":" | default (ternary "80" "443" (hasPrefix "http://" $url)) | atoi -}}
{{- $rule := include "assay.outsideEgress" (dict "root" .root "ports" (list $port)) | fromYaml -}}
{{- with .root.Values.networkPolicy.s3 }}{{ $_ := set $rule "to" . }}{{ end -}}
{{- toYaml $rule -}}
{{- end -}}

{{/* What the init container fetches weights through, as a YAML list. */}}
{{- define "assay.modelsEgress" -}}
{{- $models := .Values.models -}}
{{- $rules := list -}}
{{- if or (eq $models.source "hub") (hasPrefix "hub://" $models.shadow) -}}
{{- $rules = append $rules (include "assay.outsideEgress" (dict "root" . "ports" (list 443)) | fromYaml) -}}
{{- end -}}
{{- if or (eq $models.source "s3") (hasPrefix "s3://" $models.shadow) -}}
{{- $rules = append $rules (include "assay.bucketEgress" (dict "root" . "url" $models.s3EndpointUrl) | fromYaml) -}}
{{- end -}}
{{- toYaml $rules -}}
{{- end -}}
