{{/*
The server's environment as a map: name to text or to {valueFrom}. extraEnv is
merged over it, so that an overlay can change a single variable.
*/}}
{{- define "stemedb.envMap" -}}
STEMEDB_NODE_NAME:
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
STEMEDB_ADVERTISE_ADDR: {{ printf "$(POD_NAME).%s" (include "stemedb.headlessDomain" .) | quote }}
STEMEDB_BIND_ADDR: ":18180"
STEMEDB_GATEWAY_ADDR: ":18181"
STEMEDB_REPLICATION_ADDR: ":18182"
STEMEDB_GOSSIP_ADDR: ":18183"
STEMEDB_WAL_DIR: /data/wal
STEMEDB_DB_DIR: /data/db
STEMEDB_CLUSTER_JOIN_FILE: /etc/stemedb/cluster/members
STEMEDB_CLUSTER_SECRET_FILE: /etc/stemedb/secrets/cluster-secret
STEMEDB_ROOT_API_KEY_FILE: /etc/stemedb/secrets/root-api-key
STEMEDB_AUTH_ENABLED: {{ .Values.server.authEnabled | quote }}
STEMEDB_LOG_LEVEL: {{ .Values.server.logLevel | quote }}
STEMEDB_LOG_FORMAT: {{ .Values.server.logFormat | quote }}
STEMEDB_SHUTDOWN_GRACE: {{ .Values.server.shutdownGrace | quote }}
{{- with .Values.server.allowedOrigins }}
STEMEDB_ALLOWED_ORIGINS: {{ join "," . | quote }}
{{- end }}
{{- with include "stemedb.goMemLimit" . }}
GOMEMLIMIT: {{ . | quote }}
{{- end }}
{{- with .Values.tls.secretName }}
STEMEDB_TLS_CERT_PATH: /etc/stemedb/tls/tls.crt
STEMEDB_TLS_KEY_PATH: /etc/stemedb/tls/tls.key
{{- end }}
{{- with .Values.tls.peer.secretName }}
STEMEDB_PEER_TLS_CERT_PATH: /etc/stemedb/peer-tls/tls.crt
STEMEDB_PEER_TLS_KEY_PATH: /etc/stemedb/peer-tls/tls.key
STEMEDB_PEER_TLS_CA_PATH: /etc/stemedb/peer-tls/ca.crt
{{- end }}
{{- end -}}

{{/* The map as a list. POD_NAME comes first: $(POD_NAME) resolves only preceding variables. */}}
{{- define "stemedb.env" -}}
{{- $env := include "stemedb.envMap" . | fromYaml -}}
{{- include "stemedb.mergePatch" (list $env .Values.extraEnv) -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- range $name, $value := $env }}
- name: {{ $name | quote }}
  {{- if kindIs "map" $value }}
  {{- toYaml $value | nindent 2 }}
  {{- else }}
  value: {{ include "stemedb.scalar" $value | quote }}
  {{- end }}
{{- end }}
{{- end -}}
