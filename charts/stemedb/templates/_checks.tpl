{{/* The checks of validate.yaml: each one writes "- sentence" lines, or nothing. */}}

{{- define "stemedb.check.names" -}}
{{- $full := include "stemedb.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $full) }}
- The base name {{ $full | quote }} is not a valid Service name: it must begin with a letter and hold only a-z, 0-9 and "-". Set fullnameOverride.
{{- end }}
{{- end -}}

{{- define "stemedb.check.secrets" -}}
{{- $secrets := .Values.secrets -}}
{{- if and $secrets.existing.name (ne $secrets.source "existing") }}
- secrets.existing.name is set but secrets.source is "{{ $secrets.source }}", so two sources claim the secrets. Set secrets.source to "existing" or leave the name empty.
{{- end }}
{{- if and $secrets.externalSecret.secretStoreRef.name (ne $secrets.source "externalSecret") (not $secrets.externalSecret.staged) }}
- secrets.externalSecret.secretStoreRef.name is set but secrets.source is "{{ $secrets.source }}", so two sources claim the secrets. Set secrets.source to "externalSecret", or secrets.externalSecret.staged to true to prepare that change, or leave the name empty.
{{- end }}
{{- if and (eq $secrets.source "generated") (not $secrets.job.enabled) }}
- secrets.job.enabled is false, so nothing creates the Secret of secrets.source "generated". Turn the Job on, or create the Secret yourself and set secrets.source to "existing".
{{- end }}
{{- if eq $secrets.keys.rootApiKey $secrets.keys.clusterSecret }}
- secrets.keys.rootApiKey and secrets.keys.clusterSecret are both "{{ $secrets.keys.rootApiKey }}": each of the two secrets needs its own key. Set them to different names.
{{- end }}
{{- end -}}

{{- define "stemedb.check.image" -}}
{{- if and (eq .Values.image.tag "latest") (not .Values.image.digest) }}
- image.tag is "latest": each restart could run a different server version, and a rollback is impossible. Name a version, or leave it empty for the chart's own ({{ .Chart.AppVersion }}).
{{- end }}
{{- end -}}

{{- define "stemedb.check.replicas" -}}
{{- $replicas := int .Values.replicas -}}
{{- $budget := .Values.podDisruptionBudget -}}
{{- $tolerated := max 1 (div (sub $replicas 1) 2) | int -}}
{{- $away := include "stemedb.podsOf" (list $budget.maxUnavailable $replicas) | int -}}
{{- $what := printf "podDisruptionBudget.maxUnavailable is %v" $budget.maxUnavailable -}}
{{- if $budget.minAvailable -}}
{{- $away = sub $replicas (include "stemedb.podsOf" (list $budget.minAvailable $replicas) | int) | int -}}
{{- $what = printf "podDisruptionBudget.minAvailable is %v, which allows %d to be unavailable" $budget.minAvailable $away -}}
{{- end -}}
{{- if and $budget.minAvailable (ne (toString $budget.maxUnavailable) "1") }}
- podDisruptionBudget.maxUnavailable and minAvailable are both set, and Kubernetes takes one. Leave maxUnavailable at 1, or remove minAvailable.
{{- else if and $budget.enabled (ge $replicas 2) (lt $away 1) }}
- {{ $what }}: none of the {{ $replicas }} pods may be evicted, so every drain of a node would be blocked permanently. Lower it.
{{- else if and $budget.enabled (ge $replicas 2) (gt $away $tolerated) }}
- {{ $what }}, but {{ $replicas }} replicas keep their majority only while at most {{ $tolerated }} are unavailable. {{ ternary (printf "Set it to %d or more" (sub $replicas $tolerated)) (printf "Set it to %d" $tolerated) (not (empty $budget.minAvailable)) }} or raise replicas to {{ add (mul 2 $away) 1 }}.
{{- end }}
{{- if ge (int .Values.updateStrategy.partition) (add $replicas 1 | int) }}
- updateStrategy.partition is {{ int .Values.updateStrategy.partition }}, beyond the {{ $replicas }} replicas. Use 0 to update all, or {{ $replicas }} to hold back all.
{{- end }}
{{- end -}}

{{/* The number of pods for a number or a percentage; Kubernetes rounds percentages up. */}}
{{- define "stemedb.podsOf" -}}
{{- $value := index . 0 -}}
{{- if kindIs "string" $value -}}
{{- div (add (mul (trimSuffix "%" $value | atoi) (index . 1)) 99) 100 -}}
{{- else -}}
{{- int $value -}}
{{- end -}}
{{- end -}}

{{- define "stemedb.check.shutdown" -}}
{{- $grace := include "stemedb.seconds" .Values.server.shutdownGrace | atoi -}}
{{- $kill := int .Values.terminationGracePeriodSeconds -}}
{{- /* After the grace it finishes requests, transfers the leadership and leaves the gossip, 10 s each at most, and closes the store. */}}
{{- if lt $kill (add $grace 40 | int) }}
- terminationGracePeriodSeconds is {{ $kill }}, but the server continues to serve for {{ $grace }} s after SIGTERM and then needs up to 40 s to finish, hand over and close. Set it to {{ add $grace 40 }} or more, or lower server.shutdownGrace.
{{- end }}
{{- $monitor := .Values.monitoring.serviceMonitor -}}
{{- if gt (include "stemedb.seconds" $monitor.scrapeTimeout | atoi) (include "stemedb.seconds" $monitor.interval | atoi) }}
- monitoring.serviceMonitor.scrapeTimeout is {{ $monitor.scrapeTimeout }}, longer than the interval of {{ $monitor.interval }}, and Prometheus rejects that. Lower it.
{{- end }}
{{- end -}}

{{- define "stemedb.check.memory" -}}
{{- $request := get (get .Values.resources "requests" | default dict) "memory" -}}
{{- $limit := get (get .Values.resources "limits" | default dict) "memory" -}}
{{- if and $request $limit -}}
{{- if gt (include "stemedb.bytes" $request | atoi) (include "stemedb.bytes" $limit | atoi) }}
- resources.requests.memory ({{ $request }}) is more than resources.limits.memory ({{ $limit }}), and Kubernetes rejects that. Raise the limit or lower the request.
{{- end }}
{{- end }}
{{- end -}}

{{/* Variables that extraEnv must not set, and the values that set them. */}}
{{- define "stemedb.ownEnv" -}}
STEMEDB_BIND_ADDR: nothing (the port is fixed)
STEMEDB_GATEWAY_ADDR: nothing (the port is fixed)
STEMEDB_REPLICATION_ADDR: nothing (the port is fixed)
STEMEDB_GOSSIP_ADDR: nothing (the port is fixed)
STEMEDB_WAL_DIR: persistence.wal
STEMEDB_DB_DIR: persistence.db
STEMEDB_NODE_NAME: nothing (it is the pod's name)
STEMEDB_ADVERTISE_ADDR: clusterDomain
STEMEDB_CLUSTER_JOIN: replicas
STEMEDB_CLUSTER_JOIN_FILE: replicas
STEMEDB_CLUSTER_SECRET: secrets
STEMEDB_CLUSTER_SECRET_FILE: secrets
STEMEDB_ROOT_API_KEY: secrets
STEMEDB_ROOT_API_KEY_FILE: secrets
STEMEDB_AUTH_ENABLED: server.authEnabled
STEMEDB_ALLOWED_ORIGINS: server.allowedOrigins
STEMEDB_LOG_LEVEL: server.logLevel
STEMEDB_LOG_FORMAT: server.logFormat
STEMEDB_SHUTDOWN_GRACE: server.shutdownGrace
STEMEDB_TLS_CERT_PATH: tls.secretName
STEMEDB_TLS_KEY_PATH: tls.secretName
STEMEDB_PEER_TLS_CERT_PATH: tls.peer.secretName
STEMEDB_PEER_TLS_KEY_PATH: tls.peer.secretName
STEMEDB_PEER_TLS_CA_PATH: tls.peer.secretName
POD_NAME: nothing (it is the pod's name)
{{- end -}}

{{- define "stemedb.check.env" -}}
{{- $own := include "stemedb.ownEnv" . | fromYaml -}}
{{- range $name, $value := .Values.extraEnv -}}
{{- with get $own $name }}
- extraEnv.{{ $name }} is set by the chart. Change {{ . }} instead.
{{- end }}
{{- end }}
{{- if and .Values.server.authEnabled (eq (get .Values.extraEnv "STEMEDB_UNSAFE_SKIP_SIGNATURES" | toString) "true") }}
- extraEnv.STEMEDB_UNSAFE_SKIP_SIGNATURES is true while server.authEnabled is true: the server refuses to start with both. Remove the variable.
{{- end }}
{{- end -}}

{{- define "stemedb.check.labels" -}}
{{- range $set := list "commonLabels" "podLabels" -}}
{{- range $label := list "name" "instance" "component" "part-of" "version" "managed-by" -}}
{{- if hasKey (get $.Values $set) (printf "app.kubernetes.io/%s" $label) }}
- {{ $set }} holds app.kubernetes.io/{{ $label }}, which the chart sets itself and may use in selectors. Remove it.
{{- end }}
{{- end }}
{{- if hasKey (get $.Values $set) "helm.sh/chart" }}
- {{ $set }} holds helm.sh/chart, which the chart sets itself. Remove it.
{{- end }}
{{- end }}
{{- end -}}

{{- define "stemedb.check.tls" -}}
{{- if and .Values.tls.secretName .Values.ingress.enabled .Values.ingress.tls.enabled (not .Values.tls.behindIngress) }}
- TLS is on at the Ingress (ingress.tls.enabled) and in the server (tls.secretName) at once, so the Ingress controller must trust the server's certificate too. Leave tls.secretName empty to terminate TLS at the Ingress, or set tls.behindIngress to true if both are intended.
{{- end }}
{{- end -}}

{{- define "stemedb.check.publicity" -}}
{{- $open := or .Values.ingress.enabled (ne .Values.service.gateway.type "ClusterIP") -}}
{{- if and $open (not .Values.server.authEnabled) }}
- server.authEnabled is false while the gateway is published by {{ ternary "an Ingress" (printf "a Service of type %s" .Values.service.gateway.type) .Values.ingress.enabled }}: anyone could write. Turn authentication on, or keep the gateway inside the cluster.
{{- end }}
{{- end -}}

{{- define "stemedb.check.service" -}}
{{- $service := .Values.service.gateway -}}
{{- if and (eq $service.type "ClusterIP") (or $service.nodePort $service.externalTrafficPolicy) }}
- service.gateway.nodePort and externalTrafficPolicy have no effect on a Service of type ClusterIP, and Kubernetes rejects them. Remove them or set service.gateway.type to NodePort or LoadBalancer.
{{- end }}
{{- if and (ne $service.type "LoadBalancer") (or $service.loadBalancerClass $service.loadBalancerSourceRanges) }}
- service.gateway.loadBalancerClass and loadBalancerSourceRanges need service.gateway.type LoadBalancer, not {{ $service.type }}. Remove them or change the type.
{{- end }}
{{- end -}}

{{- define "stemedb.check.volumes" -}}
{{- range $name, $volume := .Values.extraVolumes -}}
{{- if has $name (list "wal" "db" "members" "secrets" "tls" "peer-tls") }}
- extraVolumes.{{ $name }} has the name of one of the chart's own volumes. Choose another name.
{{- end }}
{{- if and $volume (get ($volume | default dict) "mountPath") (regexMatch "^/(data|etc/stemedb)(/|$)" (get ($volume | default dict) "mountPath" | toString)) }}
- extraVolumes.{{ $name }} is mounted at {{ $volume.mountPath }}, inside the server's own directories. Mount it elsewhere.
{{- end }}
{{- if and $volume (ne (len $volume.source) 1) }}
{{- $kinds := list }}
{{- range $kind, $_ := $volume.source }}{{ $kinds = append $kinds $kind }}{{ end }}
- extraVolumes.{{ $name }}.source has {{ len $volume.source }} volume sources ({{ join ", " $kinds | default "none" }}). Leave one and set the others to null.
{{- end }}
{{- end }}
{{- range $name, $container := merge dict .Values.extraContainers .Values.initContainers -}}
{{- if eq $name "stemedb" }}
- extraContainers and initContainers must not contain a container named stemedb: the server has this name. Choose another name.
{{- end }}
{{- end }}
{{- end -}}
