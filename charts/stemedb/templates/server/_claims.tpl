{{/*
The claims. apiVersion, kind and volumeMode are explicit, since the API server
fills them in and a GitOps tool would see a permanent difference. The labels are
only those of the selector, since a claim is immutable.
*/}}
{{- define "stemedb.object.walClaim" -}}
{{- include "stemedb.claim" (dict "root" . "name" "wal" "volume" .Values.persistence.wal) -}}
{{- end -}}
{{- define "stemedb.object.dbClaim" -}}
{{- include "stemedb.claim" (dict "root" . "name" "db" "volume" .Values.persistence.db) -}}
{{- end -}}

{{- define "stemedb.claim" -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ .name }}
  labels:
    {{- include "stemedb.selectorLabels" (list .root "server") | nindent 4 }}
  {{- with .volume.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  accessModes:
    {{- toYaml .volume.accessModes | nindent 4 }}
  {{- with include "stemedb.storageClass" (list .root .volume.storageClassName) }}
  storageClassName: {{ . | quote }}
  {{- end }}
  volumeMode: Filesystem
  resources:
    requests:
      storage: {{ include "stemedb.scalar" .volume.size | quote }}
{{- end -}}
