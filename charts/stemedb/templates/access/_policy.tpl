{{/*
One rule: direction ("from" or "to"), what it is for, its peers by name (a map
is walked in the order of its names, so every rendering is the same), and
protocol and port by turns.
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

{{/* A map of name to peer (or rule) as a list, without what an overlay took out (null, or enabled: false). */}}
{{- define "stemedb.peers" -}}
{{- range $name, $peer := . }}
{{- if and $peer (ne (get $peer "enabled" | toString) "false") }}
- {{- toYaml (omit $peer "enabled") | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Egress to the cluster's DNS, by UDP and by TCP. */}}
{{- define "stemedb.dnsRule" -}}
{{- $ports := list -}}
{{- range .Values.networkPolicy.dns.ports }}{{ $ports = concat $ports (list "UDP" (int .) "TCP" (int .)) }}{{ end -}}
{{- include "stemedb.policyRule" (list "to" "DNS" .Values.networkPolicy.dns.peers $ports) -}}
{{- end -}}
