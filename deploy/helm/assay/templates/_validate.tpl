{{/* What a schema cannot say: values that contradict each other. All problems at once, each with the value to change. */}}

{{/* How many of `pods` a maxSurge is, with "round" "ceil", or a maxUnavailable, with "floor": (dict "of" "25%" "pods" 8 "round" "ceil") */}}
{{- define "assay.podCount" -}}
{{- if kindIs "string" .of -}}
{{- $exact := divf (mulf (trimSuffix "%" .of | float64) .pods) 100 -}}
{{- ternary (ceil $exact) (floor $exact) (eq .round "ceil") | int64 -}}
{{- else -}}
{{- int64 .of -}}
{{- end -}}
{{- end -}}

{{- define "assay.validate" -}}
{{- $v := .Values -}}
{{- $problems := list -}}
{{- $url := dig "triton" "url" "" $v.settings -}}
{{- if and (eq $v.triton.mode "external") (not $url) -}}
{{- $problems = append $problems "settings.triton.url: triton.mode=external needs the address of your Triton (host:port)" -}}
{{- end -}}
{{- if and (ne $v.triton.mode "external") $url -}}
{{- $problems = append $problems (printf "settings.triton.url: the chart sets it with triton.mode=%s; remove it, or set triton.mode=external" $v.triton.mode) -}}
{{- end -}}
{{- if and (ne $v.triton.mode "external") (eq $v.triton.flavour "tensorrt") (not $v.gpu.enabled) -}}
{{- $problems = append $problems "triton.flavour=tensorrt needs gpu.enabled=true; without a GPU set triton.flavour=cpu" -}}
{{- end -}}
{{- if and (eq $v.triton.flavour "cpu") $v.gpu.enabled (ne $v.triton.mode "external") -}}
{{- $problems = append $problems "triton.flavour=cpu leaves the GPU idle; set gpu.enabled=false, or triton.flavour=tensorrt" -}}
{{- end -}}
{{- if and $v.gpu.worker (not $v.gpu.enabled) -}}
{{- $problems = append $problems "gpu.worker=true needs gpu.enabled=true" -}}
{{- end -}}
{{- if and (eq $v.models.source "pvc") (not $v.models.claimName) -}}
{{- $problems = append $problems "models.claimName: models.source=pvc needs the claim that holds the weights" -}}
{{- end -}}
{{- if and (eq $v.models.source "hub") (or (not $v.models.uri) (not $v.models.revision)) -}}
{{- $problems = append $problems "models.uri, models.revision: models.source=hub needs organisation/repository and the commit to pin" -}}
{{- end -}}
{{- $shadow := gt (dig "shadow" "share" 0 $v.settings | float64) 0.0 -}}
{{- if and (ne $v.triton.mode "external") (ne $shadow (not (empty $v.models.shadow))) -}}
{{- $problems = append $problems "models.shadow, settings.shadow.share: a shadow model needs both, its weights and the share of the images that it sees" -}}
{{- end -}}
{{- if and $v.evidence.c2paTrust.pem $v.evidence.c2paTrust.configMapName -}}
{{- $problems = append $problems "evidence.c2paTrust: either the list itself (pem), or the ConfigMap that has it (configMapName)" -}}
{{- end -}}
{{- $redisUrl := dig "redis" "url" "" $v.settings -}}
{{- if or (contains "@" $redisUrl) (regexMatch "(?i)[?&][^=&]*(username|password|passwd|secret|token)" $redisUrl) -}}
{{- $problems = append $problems "settings.redis.url: becomes a ConfigMap and must hold no user or password; put the whole URL into a Secret (secrets.keys, or secrets.values, redis.url), or settings.redis.username and the secret redis.password" -}}
{{- end -}}
{{- if contains "@" (dig "references" "s3_endpoint_url" "" $v.settings | default "") -}}
{{- $problems = append $problems "settings.references.s3_endpoint_url: becomes a ConfigMap and must hold no user or password; give them as AWS_* variables from a Secret in worker.extraEnv (valueFrom)" -}}
{{- end -}}
{{- range $name, $uri := dict "uri" $v.models.uri "shadow" $v.models.shadow "s3EndpointUrl" $v.models.s3EndpointUrl -}}
{{- if regexMatch "://[^/]*@" $uri -}}
{{- $problems = append $problems (printf "models.%s: stands in the pod's specification and must hold no user or password; put them into the Secret that models.credentialsSecret names" $name) -}}
{{- end -}}
{{- end -}}
{{- range $v.worker.extraEnv -}}
{{- if hasPrefix "ASSAY_" (.name | default "" | toString | upper) -}}
{{- $problems = append $problems (printf "worker.extraEnv: %s is the worker's own setting; write it under settings, a secret one under secrets" .name) -}}
{{- end -}}
{{- end -}}
{{- range $value, $entries := dict "worker.extraEnv" (include "assay.workerVariables" . | fromYamlArray) "worker.extraVolumes" (include "assay.workerVolumes" . | fromYamlArray) "worker.extraVolumeMounts" (include "assay.workerMounts" . | fromYamlArray) -}}
{{- $key := ternary "mountPath" "name" (eq $value "worker.extraVolumeMounts") -}}
{{- $seen := list -}}
{{- range $entries -}}
{{- if has (get . $key) $seen -}}
{{- $problems = append $problems (printf "%s: %s=%v is there already (the chart's own, or given twice); take another" $value $key (get . $key)) -}}
{{- end -}}
{{- $seen = append $seen (get . $key) -}}
{{- end -}}
{{- end -}}
{{- range $name, $resources := dict "worker" $v.worker.resources "triton" $v.triton.resources "models" $v.models.resources "training" $v.training.resources -}}
{{- range $resource, $asked := $resources.requests -}}
{{- $limit := get (default dict $resources.limits) $resource -}}
{{- if and $limit (gt (include "assay.quantity" $asked | float64) (include "assay.quantity" $limit | float64)) -}}
{{- $problems = append $problems (printf "%s.resources.requests.%s=%v: more than limits.%s=%v; lower it, or raise the limit" $name $resource $asked $resource $limit) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.secrets.existingSecret $v.secrets.values -}}
{{- $problems = append $problems "secrets.values: with secrets.existingSecret name its keys under secrets.keys instead" -}}
{{- end -}}
{{- if and $v.secrets.keys (not $v.secrets.existingSecret) -}}
{{- $problems = append $problems "secrets.keys: needs secrets.existingSecret" -}}
{{- end -}}
{{- if hasPrefix "SASL" (dig "kafka" "security_protocol" "PLAINTEXT" $v.settings) -}}
{{- if not (and (dig "kafka" "sasl_username" "" $v.settings) (include "assay.hasSecret" (dict "root" . "name" "kafka.sasl_password"))) -}}
{{- $problems = append $problems "settings.kafka.security_protocol: SASL needs settings.kafka.sasl_username and the secret kafka.sasl_password" -}}
{{- end -}}
{{- end -}}
{{- range $server := list "kafka" "redis" "triton" "references" -}}
{{- with index $v.tls $server -}}
{{- if and .secretName (not .caKey) -}}
{{- $problems = append $problems (printf "tls.%s.caKey: name the key of %s that holds the authorities to trust" $server .secretName) -}}
{{- end -}}
{{- if ne (not .certKey) (not .keyKey) -}}
{{- $problems = append $problems (printf "tls.%s: certKey and keyKey belong together" $server) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.tls.kafka.secretName (not (hasSuffix "SSL" (dig "kafka" "security_protocol" "PLAINTEXT" $v.settings))) -}}
{{- $problems = append $problems "tls.kafka.secretName: the connection is not encrypted; set settings.kafka.security_protocol to SSL or SASL_SSL, or remove the Secret" -}}
{{- end -}}
{{- if and $v.tls.redis.secretName (hasPrefix "redis://" $redisUrl) (not (include "assay.hasSecret" (dict "root" . "name" "redis.url"))) -}}
{{- $problems = append $problems "tls.redis.secretName: the connection is not encrypted; write settings.redis.url with rediss://, or remove the Secret" -}}
{{- end -}}
{{- if and (eq (dig "redis" "mode" "" $v.settings) "sentinel") (not (dig "redis" "sentinels" list $v.settings)) -}}
{{- $problems = append $problems "settings.redis.sentinels: settings.redis.mode=sentinel needs their addresses (host:port)" -}}
{{- end -}}
{{- if and (ne $v.triton.mode "sidecar") (eq (dig "triton" "shared_memory" "" $v.settings) "system") -}}
{{- $problems = append $problems (printf "settings.triton.shared_memory: with triton.mode=%s worker and Triton are in different pods and share no memory; remove it, or set triton.mode=sidecar" $v.triton.mode) -}}
{{- end -}}
{{- range $label, $_ := $v.commonLabels -}}
{{- if or (eq $label "helm.sh/chart") (has $label (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "app.kubernetes.io/part-of")) -}}
{{- $problems = append $problems (printf "commonLabels: %s is set, and selected by, the chart; take another label" $label) -}}
{{- end -}}
{{- end -}}
{{- /* With -training, the CronJob's and the pod's numbers a name is to stay below 63. */ -}}
{{- $fullname := include "assay.fullname" . -}}
{{- if and $v.training.enabled (gt (len $fullname) 41) -}}
{{- $problems = append $problems (printf "fullnameOverride: with training.enabled the names of the release have 41 characters at most, and %s has %d; set a shorter one" $fullname (len $fullname)) -}}
{{- end -}}
{{- if and (regexMatch "^[0-9]" $fullname) (or $v.training.enabled (eq $v.triton.mode "service")) -}}
{{- $problems = append $problems (printf "fullnameOverride: a Service is made, whose name must begin with a letter, and %s does not; set one that does" $fullname) -}}
{{- end -}}
{{- if gt (len $v.fullnameOverride) 48 -}}
{{- $problems = append $problems (printf "fullnameOverride: 48 characters at most, and %s has %d" $v.fullnameOverride (len $v.fullnameOverride)) -}}
{{- end -}}
{{- $scaled := ne $v.autoscaling.mode "none" -}}
{{- $least := ternary $v.autoscaling.minReplicas $v.worker.replicas $scaled | int -}}
{{- $most := ternary $v.autoscaling.maxReplicas $v.worker.replicas $scaled | int -}}
{{- if lt $most $least -}}
{{- $problems = append $problems "autoscaling.maxReplicas: must not be below autoscaling.minReplicas" -}}
{{- end -}}
{{- $surge := include "assay.podCount" (dict "of" $v.worker.rollout.maxSurge "pods" $most "round" "ceil") | int -}}
{{- $partitions := int $v.topic.partitions -}}
{{- if and $partitions (gt (add $most $surge) $partitions) -}}
{{- $problems = append $problems (printf "topic.partitions=%d: %d workers and %d more during a roll-out are too many: one without a partition never gets ready and the roll-out stops; raise the topic's partitions, or lower the workers, or set worker.rollout to maxSurge 0 and maxUnavailable 1" $partitions $most $surge) -}}
{{- end -}}
{{- range $name, $pods := dict "worker" $least "triton" (int $v.triton.replicas) -}}
{{- $part := index $v $name -}}
{{- $away := include "assay.podCount" (dict "of" $part.rollout.maxUnavailable "pods" $pods "round" "floor") | int -}}
{{- if and (gt $pods 1) (ge $away $pods) (or (eq $name "worker") (eq $v.triton.mode "service")) -}}
{{- $problems = append $problems (printf "%s.rollout.maxUnavailable=%v: with %d pods a roll-out could take them all; lower it" $name $part.rollout.maxUnavailable $pods) -}}
{{- end -}}
{{- if and (has (toString $part.rollout.maxSurge) (list "0" "0%")) (has (toString $part.rollout.maxUnavailable) (list "0" "0%")) -}}
{{- $problems = append $problems (printf "%s.rollout: maxSurge and maxUnavailable must not both be 0" $name) -}}
{{- end -}}
{{- end -}}
{{- if and $v.pdb.enabled (gt $least 1) (ge (int $v.pdb.maxUnavailable) $least) -}}
{{- $problems = append $problems (printf "pdb.maxUnavailable=%d: with %d workers a drain could take them all; lower it" (int $v.pdb.maxUnavailable) $least) -}}
{{- end -}}
{{- $away := include "assay.podCount" (dict "of" $v.worker.rollout.maxUnavailable "pods" $most "round" "floor") | int -}}
{{- if and $v.pdb.enabled (gt $away (int $v.pdb.maxUnavailable)) -}}
{{- $problems = append $problems (printf "worker.rollout.maxUnavailable=%v: a roll-out takes up to %d of %d workers away, more than pdb.maxUnavailable=%d allows a drain; lower it, or raise pdb.maxUnavailable" $v.worker.rollout.maxUnavailable $away $most (int $v.pdb.maxUnavailable)) -}}
{{- end -}}
{{- if and (eq $v.triton.mode "service") (gt (int $v.triton.replicas) 1) (ge (int $v.triton.pdb.maxUnavailable) (int $v.triton.replicas)) -}}
{{- $problems = append $problems "triton.pdb.maxUnavailable: a drain could take every Triton; lower it" -}}
{{- end -}}
{{- if and $v.training.enabled (not $v.training.dataClaimName) -}}
{{- $problems = append $problems "training.dataClaimName: training needs a claim for its data and its runs" -}}
{{- end -}}
{{- if and $v.training.enabled $v.training.schedule (gt (int $v.training.nodes) 1) -}}
{{- $problems = append $problems "training.nodes: a scheduled run has one node (its pods' names, at which several would meet, are not known beforehand)" -}}
{{- end -}}
{{- with concat $problems (include "assay.refused" . | fromYamlArray) -}}
{{- fail (printf "\n\nthe values do not fit together:\n  - %s\n" (join "\n  - " .)) -}}
{{- end -}}
{{- end -}}
