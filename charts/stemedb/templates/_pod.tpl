{{/* The common parts of the pods of the server, the Job and the test. */}}

{{- define "stemedb.onOpenShift" -}}
{{- $mode := get (get (get .Values.global "compatibility" | default dict) "openshift" | default dict) "adaptSecurityContext" | default .Values.openshift.adaptSecurityContext -}}
{{- if or (eq $mode "force") (and (eq $mode "auto") (.Capabilities.APIVersions.Has "security.openshift.io/v1")) }}true{{ end -}}
{{- end -}}

{{/* OpenShift assigns ids to each namespace and rejects all others. */}}
{{- define "stemedb.podSecurityContext" -}}
{{- $context := .Values.podSecurityContext -}}
{{- if include "stemedb.onOpenShift" . }}{{ $context = omit $context "runAsUser" "runAsGroup" "fsGroup" }}{{ end -}}
{{- include "stemedb.given" $context -}}
{{- end -}}

{{- define "stemedb.containerSecurityContext" -}}
{{- $context := .Values.containerSecurityContext -}}
{{- if include "stemedb.onOpenShift" . }}{{ $context = omit $context "runAsUser" "runAsGroup" }}{{ end -}}
{{- include "stemedb.given" $context -}}
{{- end -}}

{{/* Labels and annotations of a pod: a list of root and component. */}}
{{- define "stemedb.podMetadata" -}}
{{- $values := (index . 0).Values -}}
labels:
  {{- include "stemedb.podLabels" . | nindent 2 }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Scheduling constraints and image pull secrets of a pod. */}}
{{- define "stemedb.placement" -}}
{{- with include "stemedb.imagePullSecrets" . }}
imagePullSecrets:
  {{- . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* The preset spreads the members over nodes; an explicit affinity overrides it key by key. */}}
{{- define "stemedb.affinity" -}}
{{- $affinity := deepCopy .Values.affinity -}}
{{- if and (ne .Values.podAntiAffinity "none") (not (hasKey $affinity "podAntiAffinity")) -}}
{{- $term := include "stemedb.antiAffinityTerm" . | fromYaml -}}
{{- if eq .Values.podAntiAffinity "hard" -}}
{{- $_ := set $affinity "podAntiAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (list $term)) -}}
{{- else -}}
{{- $_ := set $affinity "podAntiAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" (list (dict "weight" 100 "podAffinityTerm" $term))) -}}
{{- end -}}
{{- end -}}
{{- with $affinity }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{- define "stemedb.antiAffinityTerm" -}}
topologyKey: kubernetes.io/hostname
labelSelector:
  matchLabels:
    {{- include "stemedb.selectorLabels" (list . "server") | nindent 4 }}
{{- end -}}

{{- define "stemedb.topologySpread" -}}
{{- range $key, $spread := .Values.topologySpread }}
{{- if $spread }}
- topologyKey: {{ $key | quote }}
  {{- toYaml $spread | nindent 2 }}
  labelSelector:
    matchLabels:
      {{- include "stemedb.selectorLabels" (list $ "server") | nindent 6 }}
{{- end }}
{{- end -}}
{{- end -}}
