{{/*
Access to the gateway from the machine that runs Helm: "outside" (the address,
if the values contain it), "steps" that set URL, and the matching "curl". With
TLS in the server the certificate names the gateway, not an address, so curl
connects to the address and uses the name.
*/}}
{{- define "stemedb.way" -}}
{{- $service := .Values.service.gateway -}}
{{- $full := include "stemedb.fullname" . -}}
{{- $get := printf "kubectl -n %s get" .Release.Namespace -}}
{{- $scheme := include "stemedb.scheme" . -}}
{{- $port := int $service.port -}}
{{- $steps := list -}}
{{- $outside := "" -}}
{{- $curl := "curl" -}}
{{- if .Values.ingress.enabled -}}
{{- $outside = printf "%s://%s" (ternary "https" "http" .Values.ingress.tls.enabled) (.Values.ingress.host | replace "*." "any-name.") -}}
{{- $steps = list (printf "URL=%s" $outside) -}}
{{- else -}}
{{- if eq $service.type "LoadBalancer" -}}
{{- $steps = list (printf "ADDRESS=$(%s service %s -o jsonpath='{.status.loadBalancer.ingress[0].ip}{.status.loadBalancer.ingress[0].hostname}')" $get $full) -}}
{{- $outside = printf "%s, port %d of the load balancer" $scheme $port -}}
{{- $steps = append $steps (printf "PORT=%d" $port) -}}
{{- else if eq $service.type "NodePort" -}}
{{- $steps = list "ADDRESS=$(kubectl get nodes -o jsonpath='{.items[0].status.addresses[?(@.type==\"InternalIP\")].address}')"
      (printf "PORT=$(%s service %s -o jsonpath='{.spec.ports[?(@.name==\"gateway\")].nodePort}')" $get $full) -}}
{{- $outside = printf "%s, port %s of every node" $scheme (ternary "$PORT (below)" (toString (int $service.nodePort)) (empty $service.nodePort)) -}}
{{- else -}}
{{- $steps = list (printf "kubectl -n %s port-forward service/%s 18181:%d &" .Release.Namespace $full $port) -}}
{{- $steps = concat $steps (list "ADDRESS=127.0.0.1" "PORT=18181") -}}
{{- end -}}
{{- if .Values.tls.secretName -}}
{{- $curl = "curl --connect-to \"::$ADDRESS:$PORT\"" -}}
{{- with .Values.tls.caKey -}}
{{- $steps = append $steps (printf "%s secret %s -o jsonpath='{.data.%s}' | base64 -d > stemedb-ca.crt" $get $.Values.tls.secretName (. | replace "." "\\.")) -}}
{{- $curl = printf "%s --cacert stemedb-ca.crt" $curl -}}
{{- end -}}
{{- $steps = append $steps (printf "URL=%s" (include "stemedb.gatewayURL" .)) -}}
{{- else -}}
{{- $steps = append $steps "URL=\"http://$ADDRESS:$PORT\"" -}}
{{- end -}}
{{- end -}}
{{- dict "outside" $outside "steps" $steps "curl" $curl | toYaml -}}
{{- end -}}
