{{/* Lists of the worker's pod with what the values add; _validate.tpl refuses an entry that is there twice. */}}

{{- define "assay.workerVariables" -}}
- {name: HOME, value: /tmp}
{{- include "assay.secretVariables" . }}
{{- with .Values.worker.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "assay.workerMounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if eq .Values.triton.mode "sidecar" }}
- {name: shared-memory, mountPath: /dev/shm}
{{- end }}
{{- include "assay.settingsMounts" . }}
{{- with .Values.worker.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "assay.workerVolumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 512Mi}
{{- include "assay.settingsVolumes" . }}
{{- if eq .Values.triton.mode "sidecar" }}
{{ include "assay.tritonVolumes" . }}
{{- end }}
{{- with .Values.worker.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
