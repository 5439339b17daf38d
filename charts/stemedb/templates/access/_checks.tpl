{{/* Enabled features that the chart's own network policies would block. */}}
{{- define "stemedb.check.reach" -}}
{{- $policy := .Values.networkPolicy -}}
{{- if $policy.enabled -}}
{{- $clients := omit $policy.clients "sameNamespace" -}}
{{- $gateway := include "stemedb.opens" (list . 18181 "gateway") -}}
{{- if and .Values.monitoring.serviceMonitor.enabled (not (include "stemedb.peers" $policy.scrapers)) (not (include "stemedb.opens" (list . 18180 "http-api"))) }}
- networkPolicy.enabled and monitoring.serviceMonitor.enabled are true, but networkPolicy.scrapers lists no peer, so every target would be down permanently. Add Prometheus, for example networkPolicy.scrapers.prometheus: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}, podSelector: {matchLabels: {app.kubernetes.io/name: prometheus}}}.
{{- end }}
{{- if and .Values.ingress.enabled (not (include "stemedb.peers" $clients)) (not $gateway) }}
- networkPolicy.enabled and ingress.enabled are true, but networkPolicy.clients does not list the Ingress controller, so no request would get through. Add its pods (also when they run in this namespace), for example networkPolicy.clients.ingress: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {app.kubernetes.io/name: traefik}}}.
{{- end }}
{{- if and (ne .Values.service.gateway.type "ClusterIP") (not (include "stemedb.peers" $clients)) (not $gateway) }}
- networkPolicy.enabled is true and service.gateway.type is {{ .Values.service.gateway.type }}, but networkPolicy.clients lists no address outside the cluster, so no request would get in. Add the callers, for example networkPolicy.clients.lan: {ipBlock: {cidr: 10.0.0.0/8}}; if externalTrafficPolicy is not Local, add the nodes' own addresses instead.
{{- end }}
{{- if not (include "stemedb.peers" $policy.dns.peers) }}
- networkPolicy.dns.peers lists no peer, so the members could not find each other. Add the cluster's DNS, or keep the default.
{{- end }}
{{- end -}}
{{- end -}}

{{/* Whether an extraIngress rule opens a port: a list of root, number and name. */}}
{{- define "stemedb.opens" -}}
{{- $number := index . 1 -}}
{{- $name := index . 2 -}}
{{- range $rule := (index . 0).Values.networkPolicy.extraIngress -}}
{{- range (get ($rule | default dict) "ports") | default list -}}
{{- $port := get . "port" | default 0 -}}
{{- $end := get . "endPort" | default 0 | int -}}
{{- if or (eq (toString $port) $name) (eq (int $port) $number) (and (le (int $port) $number) (ge $end $number)) }}true{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "stemedb.check.hosts" -}}
{{- $ingress := .Values.ingress -}}
{{- range $host, $secret := $ingress.tls.secretNames -}}
{{- if and $secret $ingress.enabled (not (has $host (append $ingress.extraHosts $ingress.host))) }}
- ingress.tls.secretNames has {{ $host }}, which is neither ingress.host nor in ingress.extraHosts. Add it there, or remove its Secret.
{{- end }}
{{- end }}
{{- end -}}
