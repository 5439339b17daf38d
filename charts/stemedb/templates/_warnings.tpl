{{/* The warnings of the notes. */}}
{{- define "stemedb.warnings" -}}
{{- $replicas := int .Values.replicas -}}
{{- if eq $replicas 1 }}
WARNING: one replica. A restart is an outage, and losing its volumes loses all data since the last backup.
{{- else if eq (mod $replicas 2) 0 }}
WARNING: {{ $replicas }} replicas tolerate as many failures as {{ sub $replicas 1 }}. Use an odd number.
{{- end }}
{{- if and .Release.IsUpgrade (lt $replicas 3) }}
WARNING: if there were more members before this upgrade, the removed ones still count for the majority, and without it every write answers 503. Set replicas back to its previous value; {{ ternary "the volumes of the removed members are kept" "records that were only on the volumes of the removed members are lost (persistence.retention.whenScaled)" (eq .Values.persistence.retention.whenScaled "Retain") }}.
{{- end }}
{{- if not .Values.server.authEnabled }}
WARNING: authentication is off. Anyone with access to the gateway can read and write everything.
{{- end }}
{{- if eq (get .Values.extraEnv "STEMEDB_UNSAFE_SKIP_SIGNATURES" | toString) "true" }}
WARNING: signatures are not verified. The author of a record is not proven.
{{- end }}
{{- if not (get (get .Values.resources "limits" | default dict) "memory") }}
WARNING: no memory limit, so GOMEMLIMIT is not set and the server may use all of its node's memory. Set resources.limits.memory.
{{- end }}
{{- if eq .Values.persistence.retention.whenDeleted "Delete" }}
WARNING: uninstalling deletes the data (persistence.retention.whenDeleted).
{{- end }}
{{- if eq .Values.persistence.retention.whenScaled "Delete" }}
WARNING: scaling down deletes the removed members' data (persistence.retention.whenScaled).
{{- end }}
{{- if and (gt $replicas 1) (eq .Values.podAntiAffinity "none") (not .Values.affinity) (not .Values.topologySpread) }}
WARNING: nothing spreads the members over nodes, so the failure of one node can take down several. Set podAntiAffinity.
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.tls.enabled) }}
WARNING: the Ingress speaks plain HTTP, so API keys cross the network in plain text.
{{- end }}
{{- if and (ne .Values.service.gateway.type "ClusterIP") (not .Values.tls.secretName) }}
WARNING: the Service of type {{ .Values.service.gateway.type }} speaks plain HTTP, so API keys cross the network in plain text. Set tls.secretName.
{{- end }}
{{- if .Values.secrets.acceptNewValues }}
WARNING: secrets.acceptNewValues is true. If the values changed, restart all members at once. Then set it back to false.
{{- end }}
{{- if and (ne .Values.secrets.source "externalSecret") .Values.secrets.externalSecret.staged }}
NOTE: External Secrets fills Secret {{ include "stemedb.stagedName" . }}. When it is ready, set secrets.source to externalSecret.
{{- end }}
{{- if eq .Values.image.tag "dev" }}
NOTE: the image is a local build (tag dev).
{{- end }}
{{- end -}}
