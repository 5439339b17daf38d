{{/*
Names. A base name has at most 45 characters, so that every name derived from it
(pods, the headless Service, Jobs, CronJobs with their limit of 52, and the
StatefulSet's controller-revision-hash label) stays within 63. A longer name is
truncated and gets a hash of the full name, so that two long names stay
distinct.
*/}}
{{- define "stemedb.cut" -}}
{{- $name := index . 0 -}}
{{- $max := index . 1 | int -}}
{{- if gt (len $name) $max -}}
{{- printf "%s-%s" (trunc (sub $max 7 | int) $name | trimSuffix "-") (sha256sum $name | trunc 6) -}}
{{- else -}}
{{- trimSuffix "-" $name -}}
{{- end -}}
{{- end -}}

{{- define "stemedb.name" -}}
{{- include "stemedb.cut" (list (default .Chart.Name .Values.nameOverride) 45) -}}
{{- end -}}

{{- define "stemedb.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := .Values.fullnameOverride -}}
{{- if not $full -}}
{{- $full = ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- end -}}
{{- include "stemedb.cut" (list $full 45) -}}
{{- end -}}

{{- define "stemedb.headlessName" -}}{{ include "stemedb.fullname" . }}-headless{{- end -}}
{{- define "stemedb.secretJobName" -}}{{ include "stemedb.fullname" . }}-ensure-secret{{- end -}}
{{- define "stemedb.stagedName" -}}{{ include "stemedb.fullname" . }}-secrets-staged{{- end -}}
{{- define "stemedb.testName" -}}{{ include "stemedb.fullname" . }}-test{{- end -}}

{{/* The Secret that the server mounts, for every source. */}}
{{- define "stemedb.secretName" -}}
{{- if eq .Values.secrets.source "existing" -}}
{{- .Values.secrets.existing.name -}}
{{- else -}}
{{- include "stemedb.fullname" . -}}-secrets
{{- end -}}
{{- end -}}

{{- define "stemedb.serviceAccountName" -}}
{{- $made := ternary (include "stemedb.fullname" .) "default" .Values.serviceAccount.create -}}
{{- default $made .Values.serviceAccount.name -}}
{{- end -}}

{{/* Parent charts set global.storageClass (or defaultStorageClass, which the chart's own value overrides). */}}
{{- define "stemedb.storageClass" -}}
{{- $global := (index . 0).Values.global | default dict -}}
{{- coalesce (get $global "storageClass") (index . 1) (get $global "defaultStorageClass") -}}
{{- end -}}

{{/* The domain of the pods' individual DNS names. */}}
{{- define "stemedb.headlessDomain" -}}
{{- printf "%s.%s.svc.%s" (include "stemedb.headlessName" .) .Release.Namespace .Values.clusterDomain -}}
{{- end -}}

{{- define "stemedb.scheme" -}}{{ ternary "https" "http" (ne .Values.tls.secretName "") }}{{- end -}}

{{/* The gateway's URL for clients inside the cluster. */}}
{{- define "stemedb.gatewayURL" -}}
{{- printf "%s://%s.%s.svc.%s:%d" (include "stemedb.scheme" .) (include "stemedb.fullname" .) .Release.Namespace .Values.clusterDomain (int .Values.service.gateway.port) -}}
{{- end -}}

{{- define "stemedb.image" -}}
{{- $global := .Values.global | default dict -}}
{{- $registry := coalesce (get $global "imageRegistry") (get (get $global "image" | default dict) "registry") .Values.image.registry -}}
{{- $image := .Values.image.repository -}}
{{- if $registry }}{{ $image = printf "%s/%s" (trimSuffix "/" $registry) $image }}{{ end -}}
{{- if or .Values.image.tag (not .Values.image.digest) }}{{ $image = printf "%s:%s" $image (default .Chart.AppVersion .Values.image.tag) }}{{ end -}}
{{- if .Values.image.digest }}{{ $image = printf "%s@%s" $image .Values.image.digest }}{{ end -}}
{{- $image -}}
{{- end -}}

{{/* A list of {name}, from names or {name}, without duplicates. */}}
{{- define "stemedb.imagePullSecrets" -}}
{{- $global := .Values.global | default dict -}}
{{- $names := list -}}
{{- range concat (get $global "imagePullSecrets" | default list) (get (get $global "image" | default dict) "pullSecrets" | default list) .Values.image.pullSecrets -}}
{{- $names = append $names (kindIs "map" . | ternary (get (kindIs "map" . | ternary . dict) "name") .) -}}
{{- end -}}
{{- range uniq $names }}
- name: {{ . | quote }}
{{- end -}}
{{- end -}}
