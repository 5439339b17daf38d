{{/*
A value that is null, or that an older release does not have, selects the
default. Helm removes such keys before it renders, so each template begins with
stemedb.fill, which restores the defaults. files/defaults.yaml duplicates
values.yaml, since a chart cannot read its own values.yaml. A null without a
default is dropped, except in three places: where null is an instruction (merge,
patch, extraEnv), in the user's own manifests, and in the values that charts
share.
*/}}
{{- define "stemedb.fill" -}}
{{- if not (hasKey .Values "filled") -}}
{{- $_ := set .Values "filled" true -}}
{{- $defaults := .Files.Get "files/defaults.yaml" | fromYaml -}}
{{- include "stemedb.fillMap" (list .Values $defaults "") -}}
{{- include "stemedb.fillPeers" (list .Values.networkPolicy.clients $defaults.networkPolicy.clients) -}}
{{- include "stemedb.fillPeers" (list .Values.networkPolicy.dns.peers $defaults.networkPolicy.dns.peers) -}}
{{- include "stemedb.dropNull" (omit .Values "merge" "patch" "extraEnv" "extraObjects" "global") -}}
{{- end -}}
{{- end -}}

{{/* In these maps null removes one entry, as in maps that are empty by default. */}}
{{- define "stemedb.openMaps" -}}
- /networkPolicy/clients
- /networkPolicy/dns/peers
- /resources
- /secrets/generated/resources
- /test/resources
- /podSecurityContext
- /containerSecurityContext
{{- end -}}

{{- define "stemedb.fillMap" -}}
{{- $values := index . 0 -}}
{{- $path := index . 2 -}}
{{- $open := include "stemedb.openMaps" . | fromYamlArray -}}
{{- range $key, $preset := index . 1 -}}
{{- $at := printf "%s/%s" $path $key -}}
{{- $value := index $values $key -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := set $values $key $preset -}}
{{- else if and (kindIs "map" $value) (kindIs "map" $preset) (not (has $at $open)) (ne $key "matchLabels") -}}
{{- include "stemedb.fillMap" (list $value $preset $at) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Null in a peer that has a default selects the default of that field, down to
matchLabels; in matchLabels it removes one label. A peer with an ipBlock has no
selectors. Without this, a null selector would admit nobody or everybody.
*/}}
{{- define "stemedb.fillPeers" -}}
{{- $peers := index . 0 -}}
{{- range $name, $preset := index . 1 -}}
{{- $peer := get $peers $name -}}
{{- if and (kindIs "map" $peer) (not (get (default dict $peer) "ipBlock")) -}}
{{- include "stemedb.fillMap" (list $peer $preset "/peer") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Works in place, also in lists of maps. */}}
{{- define "stemedb.dropNull" -}}
{{- $node := . -}}
{{- if kindIs "map" $node -}}
{{- range $key, $value := $node -}}
{{- if kindIs "invalid" $value }}{{ $_ := unset $node $key }}{{ else }}{{ include "stemedb.dropNull" $value }}{{ end -}}
{{- end -}}
{{- else if kindIs "slice" $node -}}
{{- range $node }}{{ include "stemedb.dropNull" . }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* A map without emptied entries: null, or "" where Helm does not pass null on. */}}
{{- define "stemedb.given" -}}
{{- $given := dict -}}
{{- range $key, $value := . -}}
{{- if kindIs "map" $value -}}
{{- with include "stemedb.given" $value | fromYaml }}{{ $_ := set $given $key . }}{{ end -}}
{{- else if not (or (kindIs "invalid" $value) (and (kindIs "string" $value) (eq $value ""))) -}}
{{- $_ := set $given $key $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $given -}}
{{- end -}}
