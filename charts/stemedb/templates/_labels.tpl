{{/*
Labels. The selector's labels are in immutable fields (the StatefulSet's
selector, the claims), so they must not contain anything that changes with a
version. Both helpers take a list of the root context and the component.
*/}}
{{- define "stemedb.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "stemedb.name" $root | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "stemedb.labels" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
{{ include "stemedb.selectorLabels" . }}
app.kubernetes.io/part-of: stemedb
app.kubernetes.io/version: {{ $root.Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" | quote }}
{{- end -}}

{{/*
The labels of a pod: neither the chart's version nor the server's, so that a new
chart version without other changes restarts no pod.
*/}}
{{- define "stemedb.podLabels" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
{{ include "stemedb.selectorLabels" . }}
app.kubernetes.io/part-of: stemedb
{{- end -}}

{{/* metadata of an object: dict "root" "name" "component", optional "labels" and "annotations". */}}
{{- define "stemedb.metadata" -}}
name: {{ .name | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "stemedb.labels" (list .root .component) | nindent 2 }}
  {{- with get . "labels" }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with include "stemedb.overlay" (list .root.Values.commonAnnotations (get . "annotations")) | fromYaml }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A list of maps, each merged over the previous ones. Sprig's merge treats an empty string as missing. */}}
{{- define "stemedb.overlay" -}}
{{- $all := dict -}}
{{- range . }}{{ include "stemedb.mergePatch" (list $all .) }}{{ end -}}
{{- toYaml $all -}}
{{- end -}}
