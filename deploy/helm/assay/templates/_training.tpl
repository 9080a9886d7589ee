{{/* (dict "root" $ "base" name-of-the-service "rendezvous" host) */}}
{{- define "assay.trainingJob" -}}
{{- $t := .root.Values.training -}}
{{- $labels := dict "root" .root "component" "training" -}}
completionMode: Indexed
completions: {{ int64 $t.nodes }}
parallelism: {{ int64 $t.nodes }}
backoffLimit: {{ int64 $t.backoffLimit }}
activeDeadlineSeconds: {{ int64 $t.activeDeadlineSeconds }}
{{- if not (kindIs "invalid" $t.ttlSecondsAfterFinished) }}
ttlSecondsAfterFinished: {{ int64 $t.ttlSecondsAfterFinished }}
{{- end }}
# A node that is drained is no failure of the run.
podFailurePolicy:
  rules:
    - {action: Ignore, onPodConditions: [{type: DisruptionTarget, status: "True"}]}
template:
  metadata:
    {{- /* Without the versions of chart and app: an upgrade that changes no more must not make another run. */}}
    labels: {{- merge (omit (include "assay.labels" $labels | fromYaml) "helm.sh/chart" "app.kubernetes.io/version") (deepCopy $t.podLabels) | toYaml | nindent 6 }}
    {{- with $t.podAnnotations }}
    annotations: {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    {{- include "assay.podHead" (dict "root" .root "placed" $t) | nindent 4 }}
    restartPolicy: Never
    subdomain: {{ .base }}
    terminationGracePeriodSeconds: 120
    containers:
      - name: training
        image: {{ include "assay.image" (dict "root" .root "image" $t.image) | quote }}
        imagePullPolicy: {{ $t.image.pullPolicy }}
        command: [torchrun]
        args:
          - --nnodes={{ int64 $t.nodes }}
          - --nproc-per-node={{ max 1 (int $t.gpusPerNode) }}
          - --rdzv-backend=c10d
          - --rdzv-endpoint={{ .rendezvous }}:29400
          - --rdzv-id={{ .base }}
          - --module
          # What follows is none of torchrun's: it would take --run for an abbreviation of its own --run-path.
          - --
          - train.main
          {{- range $t.args }}
          - {{ . | quote }}
          {{- end }}
        workingDir: /data
        env:
          - {name: HOME, value: /tmp}
          # For training.args: a run's folder that the next pod of the same Job finds again.
          - {name: JOB_NAME, valueFrom: {fieldRef: {fieldPath: "metadata.labels['batch.kubernetes.io/job-name']"}}}
          - {name: TORCHINDUCTOR_CACHE_DIR, value: /tmp/torchinductor}
        ports:
          - {name: rendezvous, containerPort: 29400}
        resources: {{- include "assay.resources" (dict "resources" $t.resources "gpu" .root.Values.gpu.resource "count" $t.gpusPerNode) | nindent 10 }}
        securityContext: {{- include "assay.containerSecurity" . | nindent 10 }}
        volumeMounts:
          - {name: data, mountPath: /data}
          - {name: tmp, mountPath: /tmp}
          - {name: shared-memory, mountPath: /dev/shm}
    volumes:
      - name: data
        persistentVolumeClaim: {claimName: {{ $t.dataClaimName | quote }}}
      - name: tmp
        emptyDir: {sizeLimit: 4Gi}
      - name: shared-memory
        emptyDir: {medium: Memory, sizeLimit: {{ $t.sharedMemory }}}
{{- end -}}
