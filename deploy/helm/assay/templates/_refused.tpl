{{/* What the worker (worker/settings/, policy.py, clients/fetch_*.py) or Triton would refuse at start, refused here before anything is
installed. tests/deploy/test_refused.py feeds the same values to both. */}}

{{/* Why an address is no host:port with a port that exists; nothing when it is one. An IPv6 address stands in brackets. */}}
{{- define "assay.addressProblem" -}}
{{- if not (regexMatch `^([^/:]+|\[[^/]+\]):[0-9]{1,5}$` .) -}}
{{ printf "%q is no host:port" . }}
{{- else -}}
{{- include "assay.portProblem" . -}}
{{- end -}}
{{- end -}}

{{/* Why the port at the end of an address (host, host:port, [v6]:port, v6) is none; nothing when it is one or there is none. */}}
{{- define "assay.portProblem" -}}
{{- $port := regexFind `^[^:]*:[^:]*$|\]:.*$` . | regexFind `:.*$` | trimPrefix ":" -}}
{{- if and $port (not (and (regexMatch `^[0-9]{1,5}$` $port) (ge (atoi $port) 1) (le (atoi $port) 65535))) -}}
{{ printf "%q needs a port from 1 to 65535" . }}
{{- end -}}
{{- end -}}

{{/* What stands between :// and the path of a URL, without a user. */}}
{{- define "assay.authority" -}}
{{- $address := regexFind `://[^/?#\s]*` . | trimPrefix "://" -}}
{{- regexReplaceAll `^.*@` $address "" -}}
{{- end -}}

{{/* A quantity of Kubernetes ("512Mi", 1.5G, 500m, 1024) as a number. */}}
{{- define "assay.quantity" -}}
{{- $unit := regexFind `(m|k|[KMGT]i?)$` (toString .) -}}
{{- $factor := get (dict "" 1 "m" 0.001 "k" 1e3 "Ki" 1024 "M" 1e6 "Mi" 1048576 "G" 1e9 "Gi" 1073741824 "T" 1e12 "Ti" 1099511627776) $unit -}}
{{- mulf (trimSuffix $unit (toString .) | float64) $factor -}}
{{- end -}}

{{- define "assay.bytes" -}}
{{- include "assay.quantity" . | float64 | int64 -}}
{{- end -}}

{{/* What worker and sidecar put into /dev/shm at most, in bytes: the worker's regions, a batch for each call and six more (worker/pipeline.py,
worker/clients/triton.py); with triton.flavour=cpu the input of two processes for each model, up to 256 images, beside their first MiB. */}}
{{- define "assay.sharedMemoryNeed" -}}
{{- $triton := dig "triton" dict .Values.settings -}}
{{- $calls := int ($triton.calls_in_flight | default 2) -}}
{{- $batch := dig "intake" "batch_max_items" nil .Values.settings | default 32 | int -}}
{{- $images := mul (add1 $calls) $batch -}}
{{- $regions := ternary 0 (mul (add 6 $calls) $batch 150528) (eq ($triton.shared_memory | default "system") "off") -}}
{{- $processes := ternary (ternary 2 4 (empty .Values.models.shadow)) 0 (eq .Values.triton.flavour "cpu") -}}
{{- add $regions (mul $processes (add (mul (min 256 $images) 150528) 1048576)) -}}
{{- end -}}

{{/* Not empty where a URL of Redis names a socket, or a host and nothing or a number behind it. */}}
{{- define "assay.redisPlace" -}}
{{- if regexMatch `^\s*(unix://|rediss?://([^/?#]*@)?[^/?#:@][^/?#@]*(/[0-9]*)?(\?[^#]*)?\s*$)` . }}named{{ end -}}
{{- end -}}

{{/* The problems as a YAML list. */}}
{{- define "assay.refused" -}}
{{- $v := .Values -}}
{{- $problems := list -}}
{{- $kafka := dig "kafka" dict $v.settings -}}
{{- $redis := dig "redis" dict $v.settings -}}
{{- $references := dig "references" dict $v.settings -}}
{{- range $name, $addresses := dict "kafka.bootstrap_servers" $kafka.bootstrap_servers "redis.sentinels" $redis.sentinels -}}
{{- range $addresses -}}
{{- with include "assay.addressProblem" . }}{{ $problems = append $problems (printf "settings.%s: %s" $name .) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $session := $kafka.session_timeout_ms | default 10000 | int -}}
{{- if gt (mul 2 ($kafka.heartbeat_interval_ms | default 2000 | int)) $session -}}
{{- $problems = append $problems (printf "settings.kafka.heartbeat_interval_ms: at most half of session_timeout_ms=%d is expected" $session) -}}
{{- end -}}
{{- $topics := list ($kafka.incoming_topic | default "images.incoming") ($kafka.verdicts_topic | default "images.verdicts") ($kafka.rejected_topic | default "images.rejected") ($kafka.retry_topic | default "images.retry") ($kafka.reviews_topic | default "images.reviews") -}}
{{- if lt (len (uniq $topics)) 5 -}}
{{- $problems = append $problems "settings.kafka.incoming_topic: it, verdicts_topic, rejected_topic, retry_topic and reviews_topic must differ, or the worker consumes what it writes" -}}
{{- end -}}
{{- with $redis.url -}}
{{- with include "assay.authority" . | include "assay.portProblem" }}{{ $problems = append $problems (printf "settings.redis.url: %s" .) }}{{ end -}}
{{- if not (include "assay.redisPlace" .) }}{{ $problems = append $problems "settings.redis.url: a host and, behind it, nothing or the number of a database are expected" }}{{ end -}}
{{- end -}}
{{- with get $v.secrets.values "redis.url" -}}
{{- if not (regexMatch "^(redis|rediss|unix)://" .) -}}
{{- $problems = append $problems "secrets.values.redis.url: a URL that begins with redis://, rediss:// or unix:// is expected" -}}
{{- else if include "assay.authority" . | include "assay.portProblem" -}}
{{- $problems = append $problems "secrets.values.redis.url: a port from 1 to 65535 is expected" -}}
{{- else if not (include "assay.redisPlace" .) -}}
{{- $problems = append $problems "secrets.values.redis.url: a host and, behind it, nothing or the number of a database are expected" -}}
{{- end -}}
{{- end -}}
{{- $effective := get $v.secrets.values "redis.url" | default $redis.url | default "" | trim -}}
{{- if not (or $effective (include "assay.hasSecret" (dict "root" . "name" "redis.url"))) -}}
{{- $problems = append $problems "settings.redis.url: where Redis is must be said, here or in the secret redis.url" -}}
{{- end -}}
{{- if and (eq ($redis.mode | default "") "cluster") (not (regexMatch `^(rediss?://[^/?#]*(/0?)?([?#].*)?)?$` $effective)) -}}
{{- $problems = append $problems "settings.redis.mode: cluster needs a URL redis:// or rediss:// with a host, and has database 0 alone" -}}
{{- end -}}
{{- with dig "triton" "url" "" $v.settings -}}
{{- with include "assay.addressProblem" (regexReplaceAll "^grpcs?://" . "") -}}
{{- $problems = append $problems (printf "settings.triton.url: %s; host:port, grpc://host:port or grpcs://host:port is expected" .) -}}
{{- end -}}
{{- end -}}
{{- if and $v.tls.triton.secretName (not (hasPrefix "grpcs://" (dig "triton" "url" "" $v.settings | default ""))) -}}
{{- $problems = append $problems "tls.triton.secretName: the connection is not encrypted; write settings.triton.url with grpcs:// (triton.mode=external), or remove the Secret" -}}
{{- end -}}
{{- if and (eq (dig "decode" "device" "" $v.settings | default "") "gpu") (not $v.gpu.worker) -}}
{{- $problems = append $problems "settings.decode.device: gpu needs a GPU in the worker's container; set gpu.worker=true, or leave the device to the chart" -}}
{{- end -}}
{{- range $references.file_roots -}}
{{- if not (hasPrefix "/" .) }}{{ $problems = append $problems (printf "settings.references.file_roots: %q: an absolute folder is expected" .) }}{{ end -}}
{{- end -}}
{{- range $references.https_hosts -}}
{{- if or (regexMatch `[/?#@\s]|^(\*\.)?(:|$)|.\*` .) (regexMatch `^\*\.([0-9.]+|\[.*)(:|$)` .) -}}
{{- $problems = append $problems (printf "settings.references.https_hosts: %q: host, host:port, *.example.org or [v6]:port is expected" .) -}}
{{- else -}}
{{- with include "assay.portProblem" . }}{{ $problems = append $problems (printf "settings.references.https_hosts: %s" .) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $problems = concat $problems (include "assay.refusedDetectors" . | fromYamlArray) (include "assay.refusedConsole" . | fromYamlArray) -}}
{{- if and $v.secrets.existingSecret (not $v.secrets.keys) -}}
{{- $problems = append $problems "secrets.existingSecret: nothing of it reaches the worker until secrets.keys says which key holds which setting" -}}
{{- end -}}
{{- if and (eq $v.autoscaling.mode "hpa") (not (dig "requests" "cpu" "" $v.worker.resources)) (not (dig "limits" "cpu" "" $v.worker.resources)) -}}
{{- $problems = append $problems "worker.resources.requests.cpu: autoscaling.mode=hpa measures the CPU by it; set one" -}}
{{- end -}}
{{- $secret := include "assay.hasSecret" (dict "root" . "name" "references.s3_secret_access_key") -}}
{{- if and (has "s3" ($references.schemes | default list)) (ne (empty $references.s3_access_key_id) (empty $secret)) -}}
{{- $problems = append $problems "settings.references.s3_access_key_id: it and the secret references.s3_secret_access_key belong together; set both, or neither for the usual AWS chain" -}}
{{- end -}}
{{- range $name, $url := dict "settings.references.s3_endpoint_url" $references.s3_endpoint_url "models.s3EndpointUrl" $v.models.s3EndpointUrl -}}
{{- if $url -}}
{{- if not (regexMatch `^https?://[^/\s]+` $url) -}}
{{- $problems = append $problems (printf "%s: a URL that begins with http:// or https:// is expected" $name) -}}
{{- else -}}
{{- with include "assay.authority" $url | include "assay.portProblem" }}{{ $problems = append $problems (printf "%s: %s" $name .) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $problems = concat $problems (include "assay.refusedPolicy" $v.policy.toml | fromYamlArray) -}}
{{- range include "assay.refusedPolicy" $v.policy.shadowToml | fromYamlArray -}}
{{- $problems = append $problems (printf "policy.shadowToml: %s" (trimPrefix "policy.toml: " .)) -}}
{{- end -}}
{{- if and $v.evidence.c2paTrust.pem (not (contains "-----BEGIN CERTIFICATE-----" $v.evidence.c2paTrust.pem)) -}}
{{- $problems = append $problems "evidence.c2paTrust.pem: no certificates in PEM; docs/evidence.md says where lists come from" -}}
{{- end -}}
{{- if ne $v.triton.mode "external" -}}
{{- $problems = concat $problems (include "assay.refusedModels" . | fromYamlArray) -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end -}}

{{/* What worker/settings/detectors.py refuses. */}}
{{- define "assay.refusedDetectors" -}}
{{- $problems := list -}}
{{- $detectors := dig "detectors" dict .Values.settings | default dict -}}
{{- $names := $detectors.names | default list -}}
{{- range $names -}}
{{- if not (regexMatch `^[a-z][a-z0-9_]{0,31}$` .) -}}
{{- $problems = append $problems (printf "settings.detectors.names: %q is no name of lower-case letters, digits and _ (32 at most)" .) -}}
{{- end -}}
{{- end -}}
{{- if lt (len (uniq $names)) (len $names) }}{{ $problems = append $problems "settings.detectors.names: each is named once" }}{{ end -}}
{{- if and $detectors.when (not $names) }}{{ $problems = append $problems "settings.detectors.when: it asks nobody, names is empty" }}{{ end -}}
{{- toYaml $problems -}}
{{- end -}}

{{/* What worker/settings/console.py refuses. */}}
{{- define "assay.refusedConsole" -}}
{{- $problems := list -}}
{{- $console := dig "console" dict .Values.settings | default dict -}}
{{- range $console.proxy_networks -}}
{{- if not (regexMatch `^([0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9a-fA-F:]*:[0-9a-fA-F:.]*)(/[0-9]{1,3})?$` .) -}}
{{- $problems = append $problems (printf "settings.console.proxy_networks: %q is no address or network, as 10.0.0.0/8" .) -}}
{{- end -}}
{{- end -}}
{{- if and $console.tls_key_path (not $console.tls_cert_path) -}}
{{- $problems = append $problems "settings.console.tls_cert_path: tls_key_path is set; a certificate is expected beside it" -}}
{{- end -}}
{{- if and (eq ($console.auth | default "users") "none") (not (regexMatch `^(localhost|127\..*|::1)$` ($console.host | default "127.0.0.1"))) -}}
{{- $problems = append $problems "settings.console.auth: none is for loopback alone; users or proxy is expected" -}}
{{- end -}}
{{- $secret := get .Values.secrets.values "console.secret" -}}
{{- if and $secret (lt (len $secret) 32) }}{{ $problems = append $problems "secrets.values.console.secret: at least 32 characters are expected" }}{{ end -}}
{{- toYaml $problems -}}
{{- end -}}

{{/* What the init container or Triton would refuse, where the chart runs them. */}}
{{- define "assay.refusedModels" -}}
{{- $v := .Values -}}
{{- $problems := list -}}
{{- if and (eq $v.triton.flavour "cpu") (eq $v.models.precision "bf16") -}}
{{- $problems = append $problems "models.precision: triton.flavour=cpu cannot serve bf16; take auto, fp32 or fp16" -}}
{{- end -}}
{{- if and (eq $v.models.source "image") (not (hasPrefix "/" $v.models.path)) -}}
{{- $problems = append $problems "models.path: models.source=image needs an absolute folder of the image" -}}
{{- end -}}
{{- if and (eq $v.models.source "s3") (not (regexMatch "^s3://[^/]+" $v.models.uri)) -}}
{{- $problems = append $problems "models.uri: models.source=s3 needs s3://bucket/prefix" -}}
{{- end -}}
{{- if and (has $v.models.source (list "image" "pvc")) (regexMatch `(^|/)\.\.(/|$)` $v.models.path) -}}
{{- $problems = append $problems (printf "models.path=%s: a folder without .. is expected" $v.models.path) -}}
{{- end -}}
{{- if and (eq $v.models.source "pvc") (eq $v.models.path "/opt/assay/weights") -}}
{{- $problems = append $problems "models.path: is the folder of Triton's image; models.source=pvc needs that of the claim (/ for its root)" -}}
{{- end -}}
{{- if and (eq $v.models.source "hub") $v.models.uri (not (regexMatch `^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$` $v.models.uri)) -}}
{{- $problems = append $problems (printf "models.uri=%s: models.source=hub needs organisation/repository" $v.models.uri) -}}
{{- end -}}
{{- if and $v.models.shadow (not (regexMatch `^(/|s3://[^/]+|hub://[^/@]+/[^/@]+@[0-9a-f]{40}$)` $v.models.shadow)) -}}
{{- $problems = append $problems "models.shadow: a folder (/…), s3://bucket/prefix or hub://organisation/repository@commit (40 hex digits) is expected" -}}
{{- end -}}
{{- range $group, $served := dict "triton" "code" "shadow" "code_shadow" -}}
{{- $wanted := dig $group "model_name" $served $v.settings | default $served -}}
{{- if ne $wanted $served -}}
{{- $problems = append $problems (printf "settings.%s.model_name: the chart's Triton serves %s, not %s; remove it, or set triton.mode=external" $group $served $wanted) -}}
{{- end -}}
{{- end -}}
{{- $shared := include "assay.bytes" $v.triton.sharedMemory | int64 -}}
{{- $need := include "assay.sharedMemoryNeed" . | int64 -}}
{{- if and (eq $v.triton.mode "sidecar") (lt $shared $need) -}}
{{- $problems = append $problems (printf "triton.sharedMemory=%s: batches of settings.intake.batch_max_items=%v in settings.triton.calls_in_flight=%v calls take up to %dMi; raise the one, or lower the others" $v.triton.sharedMemory (dig "intake" "batch_max_items" nil $v.settings | default 32) (dig "triton" "calls_in_flight" nil $v.settings | default 2) (div (add $need 1048575) 1048576)) -}}
{{- end -}}
{{- with dig "limits" "memory" "" $v.triton.resources -}}
{{- if gt $shared (include "assay.bytes" . | int64) -}}
{{- $problems = append $problems (printf "triton.sharedMemory=%s: counts against triton.resources.limits.memory=%v and must be smaller" $v.triton.sharedMemory .) -}}
{{- end -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end -}}

{{/* worker/policy/load.py in few words: the text of policy.toml. Of rules only the worker knows whether they compile. */}}
{{- define "assay.refusedPolicy" -}}
{{- $problems := list -}}
{{- $policy := dict "name" "default" "head" "linear" "fake_from" 0.65 "real_below" 0.35 -}}
{{- $short := list "head" "fake_from" "real_below" -}}
{{- $written := fromToml . -}}
{{- $rules := or (hasKey $written "rules") (hasKey $written "otherwise") -}}
{{- if and . (not (omit $written "calibration")) -}}
{{- $problems = append $problems "policy.toml: no policy in it: either [[rules]], or head, fake_from and real_below" -}}
{{- end -}}
{{- range $key, $value := $written -}}
{{- if eq $key "Error" -}}
{{- $problems = append $problems (printf "policy.toml: %v" $value) -}}
{{- else if and $rules (has $key $short) -}}
{{- $problems = append $problems (printf "policy.toml: both forms in one file: rules and %s" $key) -}}
{{- else if not (has $key (concat $short (list "name" "calibration" "rules" "otherwise"))) -}}
{{- $problems = append $problems (printf "policy.toml: %s is none of name, head, fake_from, real_below, rules, otherwise, calibration" $key) -}}
{{- end -}}
{{- $_ := set $policy $key $value -}}
{{- end -}}
{{- if not (and (kindIs "string" $policy.name) (regexMatch "^(?s:.){1,64}$" (toString $policy.name))) -}}
{{- $problems = append $problems "policy.toml: name: a text of 1 to 64 characters is expected" -}}
{{- end -}}
{{- if not (has $policy.head (list "linear" "knn" "svm")) -}}
{{- $problems = append $problems (printf "policy.toml: head=%v is none of linear, knn, svm" $policy.head) -}}
{{- end -}}
{{- $thresholds := true -}}
{{- range $name := list "fake_from" "real_below" -}}
{{- $value := get $policy $name -}}
{{- if not (and (has (kindOf $value) (list "float64" "int64")) (le 0.0 (float64 $value)) (le (float64 $value) 1.0)) -}}
{{- $problems = append $problems (printf "policy.toml: %s=%v: a number from 0 to 1 is expected" $name $value) -}}
{{- $thresholds = false -}}
{{- end -}}
{{- end -}}
{{- if and $thresholds (gt (float64 $policy.real_below) (float64 $policy.fake_from)) -}}
{{- $problems = append $problems (printf "policy.toml: real_below=%v must not be above fake_from=%v" $policy.real_below $policy.fake_from) -}}
{{- end -}}
{{- toYaml $problems -}}
{{- end -}}
