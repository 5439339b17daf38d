{{/* The pod template. No checksums: members and secrets are read from files, and scaling must restart no pod. */}}
{{- define "stemedb.object.pod" -}}
metadata:
  {{- include "stemedb.podMetadata" (list . "server") | nindent 2 }}
spec:
  serviceAccountName: {{ include "stemedb.serviceAccountName" . | quote }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int .Values.terminationGracePeriodSeconds }}
  securityContext:
    {{- include "stemedb.podSecurityContext" . | nindent 4 }}
  {{- include "stemedb.placement" . | nindent 2 }}
  {{- with include "stemedb.affinity" . }}
  affinity:
    {{- . | nindent 4 }}
  {{- end }}
  {{- with include "stemedb.topologySpread" . }}
  topologySpreadConstraints:
    {{- . | nindent 4 }}
  {{- end }}
  {{- with .Values.initContainers }}
  initContainers:
    {{- include "stemedb.namedList" . | nindent 4 }}
  {{- end }}
  containers:
    - {{- include "stemedb.part" (list . "container") | nindent 6 }}
    {{- with .Values.extraContainers }}
    {{- include "stemedb.namedList" . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "stemedb.volumes" . | nindent 4 }}
{{- end -}}

{{/* A map of name to fields as Kubernetes' list of {name, fields}. */}}
{{- define "stemedb.namedList" -}}
{{- range $name, $fields := . }}
{{- if $fields }}
- name: {{ $name | quote }}
  {{- toYaml $fields | nindent 2 }}
{{- end }}
{{- end -}}
{{- end -}}
