{{/* Mode 288 is 0440: only the owner and the pod's fsGroup can read. */}}
{{- define "stemedb.volumes" -}}
- name: members
  configMap:
    name: {{ printf "%s-members" (include "stemedb.fullname" .) | quote }}
- name: secrets
  secret:
    secretName: {{ include "stemedb.secretName" . | quote }}
    defaultMode: 288
    items:
      - key: {{ .Values.secrets.keys.rootApiKey | quote }}
        path: root-api-key
      - key: {{ .Values.secrets.keys.clusterSecret | quote }}
        path: cluster-secret
{{- with .Values.tls.secretName }}
- name: tls
  secret:
    secretName: {{ . | quote }}
    defaultMode: 288
{{- end }}
{{- with .Values.tls.peer.secretName }}
- name: peer-tls
  secret:
    secretName: {{ . | quote }}
    defaultMode: 288
{{- end }}
{{- range $name, $volume := .Values.extraVolumes }}
{{- if $volume }}
- name: {{ $name | quote }}
  {{- with $volume.source }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "stemedb.volumeMounts" -}}
- name: wal
  mountPath: /data/wal
- name: db
  mountPath: /data/db
- name: members
  mountPath: /etc/stemedb/cluster
  readOnly: true
- name: secrets
  mountPath: /etc/stemedb/secrets
  readOnly: true
{{- if .Values.tls.secretName }}
- name: tls
  mountPath: /etc/stemedb/tls
  readOnly: true
{{- end }}
{{- if .Values.tls.peer.secretName }}
- name: peer-tls
  mountPath: /etc/stemedb/peer-tls
  readOnly: true
{{- end }}
{{- range $name, $volume := .Values.extraVolumes }}
{{- if get ($volume | default dict) "mountPath" }}
- name: {{ $name | quote }}
  {{- toYaml (omit $volume "source") | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}
