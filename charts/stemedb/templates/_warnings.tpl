{{/* What the notes warn of. */}}
{{- define "stemedb.warnings" -}}
{{- $replicas := int .Values.replicas -}}
{{- if eq $replicas 1 }}
WARNING: one replica. A restart is an outage, and the loss of its volumes loses everything since the last backup.
{{- else if eq (mod $replicas 2) 0 }}
WARNING: {{ $replicas }} replicas survive no more losses than {{ sub $replicas 1 }}. Use an odd number.
{{- end }}
{{- if and .Release.IsUpgrade (lt $replicas 3) }}
WARNING: if there were more members before this upgrade, those that are gone still count for the majority, and without it every write answers 503. Set replicas back to what it was; {{ ternary "their volumes are kept" "what was only on their volumes is lost (persistence.retention.whenScaled)" (eq .Values.persistence.retention.whenScaled "Retain") }}.
{{- end }}
{{- if not .Values.server.authEnabled }}
WARNING: authentication is off. Whoever reaches the gateway may read and write everything.
{{- end }}
{{- if eq (get .Values.extraEnv "STEMEDB_UNSAFE_SKIP_SIGNATURES" | toString) "true" }}
WARNING: signatures are not checked. Nothing that is written proves who said it.
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
WARNING: nothing spreads the members over nodes, so one node may take several with it. Set podAntiAffinity.
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.tls.enabled) }}
WARNING: the Ingress speaks plain HTTP, so API keys cross the network readable.
{{- end }}
{{- if and (ne .Values.service.gateway.type "ClusterIP") (not .Values.tls.secretName) }}
WARNING: the Service of type {{ .Values.service.gateway.type }} speaks plain HTTP, so API keys cross the network readable. Set tls.secretName.
{{- end }}
{{- if .Values.secrets.acceptNewValues }}
WARNING: secrets.acceptNewValues is true. Restart all members at once if their values changed, and set it back to false.
{{- end }}
{{- if and (ne .Values.secrets.source "externalSecret") .Values.secrets.externalSecret.staged }}
NOTE: External Secrets fills Secret {{ include "stemedb.stagedName" . }}. When it is ready, set secrets.source to externalSecret.
{{- end }}
{{- if eq .Values.image.tag "dev" }}
NOTE: the image is a local build (tag dev).
{{- end }}
{{- end -}}
