{{/*
Every object leaves the chart through stemedb.emit: a list of the root context
and a key. The template "stemedb.object.KEY" writes the object, `merge.KEY`
and then `patch.KEY` change it.
*/}}
{{- define "stemedb.emit" -}}
---
{{ include "stemedb.part" . }}
{{ end -}}

{{/*
An object, or a part of one (pod, container, claim), as YAML. Entries that an
overlay removed from a map with null are dropped.
*/}}
{{- define "stemedb.part" -}}
{{- $root := index . 0 -}}
{{- $key := index . 1 -}}
{{- $written := include (printf "stemedb.object.%s" $key) $root | fromYaml -}}
{{- with get $written "Error" -}}
{{- fail (printf "The chart's own template of %s is not valid YAML (%s); please report it." $key .) -}}
{{- end -}}
{{- $part := dict -}}
{{- include "stemedb.mergePatch" (list $part $written) -}}
{{- include "stemedb.mergePatch" (list $part (get $root.Values.merge $key)) -}}
{{- include "stemedb.jsonPatch" (list $part (get $root.Values.patch $key) $key) -}}
{{- toYaml $part -}}
{{- end -}}

{{/*
RFC 7396 in place: a list of target and patch. Sprig's mergeOverwrite ignores
false, 0 and null, so it cannot turn anything off.
*/}}
{{- define "stemedb.mergePatch" -}}
{{- $target := index . 0 -}}
{{- range $key, $value := index . 1 | default dict -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := unset $target $key -}}
{{- else if kindIs "map" $value -}}
{{- if not (kindIs "map" (get $target $key)) -}}{{- $_ := set $target $key dict -}}{{- end -}}
{{- include "stemedb.mergePatch" (list (get $target $key) $value) -}}
{{- else -}}
{{- $_ := set $target $key $value -}}
{{- end -}}
{{- end -}}
{{- end -}}
