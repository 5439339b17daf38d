{{/*
RFC 6902 in place: a list of the object, its operations and the key of `patch`.
Unlike merge, it can change one entry of a list, and remove a field where Helm
does not pass null on.
*/}}
{{- define "stemedb.jsonPatch" -}}
{{- $object := index . 0 -}}
{{- $key := index . 2 -}}
{{- range $at, $op := index . 1 | default list -}}
{{- $what := printf "patch.%s[%d] (%s %s)" $key $at $op.op $op.path -}}
{{- $new := get $op "value" -}}
{{- $verb := $op.op -}}
{{- if has $verb (list "move" "copy") -}}
{{- $source := dict "value" $object "tokens" (include "stemedb.pointer" $op.from | fromYamlArray) "op" (ternary "remove" "get" (eq $verb "move")) "what" $what -}}
{{- include "stemedb.patchStep" $source -}}
{{- $new = $source.got -}}
{{- $verb = "add" -}}
{{- end -}}
{{- $copy := deepCopy (dict "v" $new) -}}
{{- $step := dict "value" $object "tokens" (include "stemedb.pointer" $op.path | fromYamlArray) "op" $verb "new" $copy.v "what" $what -}}
{{- include "stemedb.patchStep" $step -}}
{{- if and (eq $verb "test") (ne (toJson $step.got) (toJson $new)) -}}
{{- fail (printf "%s: the object has %s there, so the patch is not applied." $what (toJson $step.got)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A JSON pointer as a list of its tokens. */}}
{{- define "stemedb.pointer" -}}
{{- $tokens := list -}}
{{- range rest (splitList "/" .) -}}
{{- $tokens = append $tokens (. | replace "~1" "/" | replace "~0" "~") -}}
{{- end -}}
{{- toYaml $tokens -}}
{{- end -}}

{{/*
One step down: a dict of "value", the "tokens" below it, "op", "new" and "what".
It leaves the changed node in "value" and the node at the path in "got".
*/}}
{{- define "stemedb.patchStep" -}}
{{- $s := . -}}
{{- $token := first $s.tokens -}}
{{- $last := eq (len $s.tokens) 1 -}}
{{- $adds := and $last (eq $s.op "add") -}}
{{- $isList := kindIs "slice" $s.value -}}
{{- $at := 0 -}}
{{- if $isList -}}
{{- $at = ternary (len $s.value) (int (ternary $token "0" (regexMatch "^[0-9]+$" $token))) (eq $token "-") -}}
{{- if or (not (regexMatch "^(-|0|[1-9][0-9]*)$" $token)) (gt $at (ternary (len $s.value) (sub (len $s.value) 1 | int) $adds)) -}}
{{- fail (printf "%s: a list of %d entries has no entry %q." $s.what (len $s.value) $token) -}}
{{- end -}}
{{- else if not (kindIs "map" $s.value) -}}
{{- fail (printf "%s: the parent of %q is neither a map nor a list." $s.what $token) -}}
{{- else if not (or $adds (hasKey $s.value $token)) -}}
{{- fail (printf "%s: there is no %q." $s.what $token) -}}
{{- end -}}
{{- $child := dict "value" nil "got" nil -}}
{{- if not $adds -}}
{{- $_ := set $child "value" (index $s.value (ternary $at $token $isList)) -}}
{{- end -}}
{{- if $last -}}
{{- $_ := set $child "got" $child.value -}}
{{- if has $s.op (list "add" "replace") }}{{ $_ := set $child "value" $s.new }}{{ end -}}
{{- else -}}
{{- $child = merge (dict "tokens" (rest $s.tokens) "value" $child.value) (omit $s "value" "tokens" "got") -}}
{{- include "stemedb.patchStep" $child -}}
{{- end -}}
{{- $_ := set $s "got" $child.got -}}
{{- $gone := and $last (eq $s.op "remove") -}}
{{- if not $isList -}}
{{- if $gone }}{{ $_ := unset $s.value $token }}{{ else }}{{ $_ := set $s.value $token $child.value }}{{ end -}}
{{- else -}}
{{- $tail := slice $s.value (ternary $at (add1 $at | int) $adds) -}}
{{- $_ := set $s "value" (concat (slice $s.value 0 $at) (ternary list (list $child.value) $gone) $tail) -}}
{{- end -}}
{{- end -}}
