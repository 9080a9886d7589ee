{{/* Triton's containers and volumes, the same beside a worker and in a Deployment of its own. */}}

{{- define "assay.gpuCount" -}}
{{- ternary .Values.gpu.count 0 .Values.gpu.enabled -}}
{{- end -}}

{{/* Fetches the weights, builds and verifies the model repository; a built one is taken from the cache. */}}
{{- define "assay.modelsContainer" -}}
name: models
image: {{ include "assay.image" (dict "root" . "image" .Values.triton.image) | quote }}
imagePullPolicy: {{ .Values.triton.image.pullPolicy }}
command: [python3, /opt/assay/prepare_models.py]
args:
  - --flavour={{ .Values.triton.flavour }}
  - --precision={{ ternary (ternary "fp16" "fp32" (eq .Values.triton.flavour "tensorrt")) .Values.models.precision (eq .Values.models.precision "auto") }}
  - --out=/models/repository
  {{- if eq .Values.models.source "image" }}
  - --source={{ .Values.models.path }}
  {{- else if eq .Values.models.source "pvc" }}
  - --source={{ printf "/weights/%s" (trimPrefix "/" .Values.models.path) }}
  {{- else if eq .Values.models.source "s3" }}
  - --source={{ .Values.models.uri }}
  {{- else }}
  - --source=hub://{{ .Values.models.uri }}@{{ .Values.models.revision }}
  {{- end }}
  {{- with .Values.models.expectedVersion }}
  - --expect={{ . }}
  {{- end }}
  {{- with .Values.models.shadow }}
  - --shadow={{ . }}
  {{- end }}
  {{- if .Values.models.cacheClaimName }}
  - --cache=/cache
  {{- end }}
env:
  - {name: HOME, value: /tmp}
  {{- with .Values.models.s3EndpointUrl }}
  - {name: AWS_ENDPOINT_URL_S3, value: {{ . | quote }}}
  {{- end }}
{{- with .Values.models.credentialsSecret }}
envFrom:
  - secretRef: {name: {{ . | quote }}}
{{- end }}
resources: {{- include "assay.resources" (dict "resources" .Values.models.resources "gpu" .Values.gpu.resource "count" (include "assay.gpuCount" .)) | nindent 2 }}
securityContext: {{- include "assay.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: models, mountPath: /models}
  - {name: triton-tmp, mountPath: /tmp}
  {{- if eq .Values.models.source "pvc" }}
  - {name: weights, mountPath: /weights, readOnly: true}
  {{- end }}
  {{- if .Values.models.cacheClaimName }}
  - {name: model-cache, mountPath: /cache}
  {{- end }}
{{- end -}}

{{/* The server. Beside a worker only that worker may call it, so gRPC listens on loopback there. */}}
{{- define "assay.tritonContainer" -}}
{{- $sidecar := eq .Values.triton.mode "sidecar" -}}
name: triton
image: {{ include "assay.image" (dict "root" . "image" .Values.triton.image) | quote }}
imagePullPolicy: {{ .Values.triton.image.pullPolicy }}
{{- if $sidecar }}
# A sidecar starts before the worker and is stopped after it: what the worker drains still gets its scores.
restartPolicy: Always
{{- end }}
# /dev/shm outlives the container: what the Python backend of a killed server left there would fill it.
# Loading a model runs its code: over HTTP nobody may, as nobody knows the key; over gRPC who has the secret
# triton.control_key, where one is given; else nobody, or, where gRPC listens on loopback, the pod itself.
{{- if .Values.models.shadow }}
# The init container leaves out a shadow model that cannot be had: the model that decides is served without it.
{{- end }}
command:
  - /bin/sh
  - -c
  - |
    rm -f /dev/shm/triton_python_backend_shm_region_*
    {{- if .Values.models.shadow }}
    [ ! -d /models/repository/code_shadow ] || set -- "$@" --load-model=code_shadow
    {{- end }}
    key=$(od -An -tx1 -N16 /dev/urandom | tr -d ' \n')
    {{- if not $sidecar }}
    : "${ASSAY_TRITON__CONTROL_KEY:=$(od -An -tx1 -N16 /dev/urandom | tr -d ' \n')}"
    {{- end }}
    exec tritonserver --http-restricted-api=model-repository,shared-memory,trace,logging:key=$key \
      ${ASSAY_TRITON__CONTROL_KEY:+"--grpc-restricted-protocol=model-repository,trace,logging:assay-control-key=$ASSAY_TRITON__CONTROL_KEY"} "$@"
  - tritonserver
args:
  - --model-repository=/models/repository
  - --model-control-mode=explicit
  - --load-model={{ dig "triton" "model_name" "code" .Values.settings }}
  - --disable-auto-complete-config
  - --exit-timeout-secs=20
  - --grpc-address={{ ternary "127.0.0.1" "0.0.0.0" $sidecar }}
  - --grpc-port=8001
  - --http-address=127.0.0.1
  - --http-port=8000
  - --metrics-port=8002
  - --allow-gpu-metrics={{ .Values.gpu.enabled }}
  {{- range .Values.triton.extraArgs }}
  - {{ . | quote }}
  {{- end }}
env:
  - {name: HOME, value: /tmp}
  {{- if include "assay.hasSecret" (dict "root" . "name" "triton.control_key") }}
  - name: ASSAY_TRITON__CONTROL_KEY
    valueFrom:
      secretKeyRef:
        name: {{ include "assay.secretName" . | quote }}
        key: {{ get (include "assay.secretKeys" . | fromYaml) "triton.control_key" | quote }}
  {{- end }}
ports:
  {{- if not $sidecar }}
  - {name: grpc, containerPort: 8001}
  {{- end }}
  - {name: triton-metrics, containerPort: 8002}
startupProbe:
  exec: {command: [curl, --fail, --silent, "http://127.0.0.1:8000/v2/health/ready"]}
  timeoutSeconds: 5
  periodSeconds: 5
  failureThreshold: {{ div .Values.triton.startupSeconds 5 }}
livenessProbe:
{{- if or $sidecar (include "assay.hasSecret" (dict "root" . "name" "triton.control_key")) }}
  exec: {command: [curl, --fail, --silent, "http://127.0.0.1:8000/v2/health/live"]}
{{- else }}
  # A server whose model's process has died calls itself live and ready. Workers without a key may not load it anew.
  exec:
    command:
      - /bin/sh
      - -c
      - |
        curl --fail --silent http://127.0.0.1:8000/v2/health/live || exit 1
        header='{"inputs":[{"name":"images","datatype":"UINT8","shape":[1,224,224,3],"parameters":{"binary_data_size":150528}}]}'
        ! { printf %s "$header"; head -c 150528 /dev/zero; } | curl --silent --max-time 4 --data-binary @- \
          --header "Inference-Header-Content-Length: ${#header}" \
          http://127.0.0.1:8000/v2/models/{{ dig "triton" "model_name" "code" .Values.settings }}/infer | grep -q "not healthy"
{{- end }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  exec: {command: [curl, --fail, --silent, "http://127.0.0.1:8000/v2/health/ready"]}
  periodSeconds: 5
  timeoutSeconds: 5
{{- if not $sidecar }}
lifecycle:
  # Until every node has heard that this pod is no endpoint any more.
  preStop: {sleep: {seconds: 10}}
{{- end }}
resources: {{- include "assay.resources" (dict "resources" .Values.triton.resources "gpu" .Values.gpu.resource "count" (include "assay.gpuCount" .)) | nindent 2 }}
securityContext: {{- include "assay.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: models, mountPath: /models, readOnly: true}
  - {name: triton-tmp, mountPath: /tmp}
  - {name: shared-memory, mountPath: /dev/shm}
{{- end -}}

{{- define "assay.tritonVolumes" -}}
- name: models
  emptyDir: {sizeLimit: 2Gi}
- name: triton-tmp
  emptyDir: {sizeLimit: 1Gi}
- name: shared-memory
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.triton.sharedMemory }}}
{{- if eq .Values.models.source "pvc" }}
- name: weights
  persistentVolumeClaim: {claimName: {{ .Values.models.claimName | quote }}, readOnly: true}
{{- end }}
{{- with .Values.models.cacheClaimName }}
- name: model-cache
  persistentVolumeClaim: {claimName: {{ . | quote }}}
{{- end }}
{{- end -}}
