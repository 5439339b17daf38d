{{- define "stemedb.object.container" -}}
name: stemedb
image: {{ include "stemedb.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy | quote }}
args: [serve]
ports:
  {{- range $name, $port := include "stemedb.containerPorts" . | fromYaml }}
  - name: {{ $name }}
    containerPort: {{ int $port.port }}
    protocol: {{ $port.protocol }}
  {{- end }}
env:
  {{- include "stemedb.env" . | nindent 2 }}
{{- range $probe, $path := dict "startup" "startup" "readiness" "ready" "liveness" "live" }}
{{ $probe }}Probe:
  httpGet:
    path: /v1/health/{{ $path }}
    port: http-api
    scheme: {{ include "stemedb.scheme" $ | upper }}
  {{- toYaml (get $.Values.probes $probe) | nindent 2 }}
{{- end }}
resources:
  {{- include "stemedb.given" .Values.resources | nindent 2 }}
securityContext:
  {{- include "stemedb.containerSecurityContext" . | nindent 2 }}
volumeMounts:
  {{- include "stemedb.volumeMounts" . | nindent 2 }}
{{- end -}}

{{/* The ports of a member, by name; Services, monitors and policies use the names. */}}
{{- define "stemedb.containerPorts" -}}
http-api: {port: 18180, protocol: TCP}
gateway: {port: 18181, protocol: TCP}
replication: {port: 18182, protocol: TCP}
swim-tcp: {port: 18183, protocol: TCP}
swim-udp: {port: 18183, protocol: UDP}
{{- end -}}
