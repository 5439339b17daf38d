{{/*
One rule: direction ("from" or "to"), its purpose, its peers by name (maps are
iterated in the order of their keys, so rendering is deterministic), and
alternating protocols and ports.
*/}}
{{- define "stemedb.policyRule" -}}
{{- $ports := index . 3 -}}
{{- with include "stemedb.peers" (index . 2) }}
# {{ index $ 1 }}
- {{ index $ 0 }}:
    {{- . | nindent 4 }}
  ports:
    {{- range $at := untilStep 0 (len $ports) 2 }}
    - protocol: {{ index $ports $at }}
      port: {{ index $ports (add $at 1) }}
    {{- end }}
{{- end }}
{{- end -}}

{{/* A map of name to peer (or rule) as a list, without entries that an overlay removed (null, or enabled: false). */}}
{{- define "stemedb.peers" -}}
{{- range $name, $peer := . }}
{{- if and $peer (ne (get $peer "enabled" | toString) "false") }}
- {{- toYaml (omit $peer "enabled") | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Egress to the cluster's DNS, over UDP and TCP. */}}
{{- define "stemedb.dnsRule" -}}
{{- $ports := list -}}
{{- range .Values.networkPolicy.dns.ports }}{{ $ports = concat $ports (list "UDP" (int .) "TCP" (int .)) }}{{ end -}}
{{- include "stemedb.policyRule" (list "to" "DNS" .Values.networkPolicy.dns.peers $ports) -}}
{{- end -}}
