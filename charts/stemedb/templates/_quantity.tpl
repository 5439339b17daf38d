{{/*
Kubernetes quantities in whole bytes, rounded down: "4Gi", "1.5Gi", "500M",
"1e9", "128974848", 128974848, "100m". Integers throughout (a float loses bytes
above 2^53); up to 8Ei minus one byte, the maximum of Go's runtime.
*/}}
{{- define "stemedb.bytes" -}}
{{- $text := include "stemedb.scalar" . -}}
{{- $form := "^([0-9]+)(\\.[0-9]*)?(([eE][+]?[0-9]+)|[numkMGTPE]|[KMGTPE]i)?$" -}}
{{- if not (regexMatch $form $text) -}}
{{- fail (printf "%q is not a quantity of bytes; write for example 512Mi, 1.5Gi or 2G." $text) -}}
{{- end -}}
{{- $whole := regexReplaceAll $form $text "${1}" -}}
{{- $fraction := regexReplaceAll $form $text "${2}" | trimPrefix "." | trunc 9 | trimSuffix "0" -}}
{{- $suffix := regexReplaceAll $form $text "${3}" -}}
{{- $factor := include "stemedb.factor" $suffix | atoi -}}
{{- if lt $factor 0 -}}
{{- /* n, u and m: a negative factor divides */ -}}
{{- div (atoi $whole) (mul -1 $factor) -}}
{{- else -}}
{{- $bytes := mul (atoi $whole) $factor -}}
{{- if $fraction -}}
{{- $scale := 1 -}}
{{- range until (len $fraction) }}{{ $scale = mul $scale 10 }}{{ end -}}
{{- /* split the factor, so that fraction × factor cannot overflow */ -}}
{{- $high := mul (atoi $fraction) (div $factor $scale) -}}
{{- $low := div (mul (atoi $fraction) (mod $factor $scale)) $scale -}}
{{- $bytes = add $bytes $high $low -}}
{{- end -}}
{{- $bytes -}}
{{- end -}}
{{- end -}}

{{/* The factor of a suffix; negative if it divides. */}}
{{- define "stemedb.factor" -}}
{{- $table := dict "" 1 "n" -1000000000 "u" -1000000 "m" -1000
      "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "P" 1000000000000000 "E" 1000000000000000000
      "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 "Ei" 1152921504606846976 -}}
{{- if hasKey $table . -}}
{{- get $table . | int64 -}}
{{- else -}}
{{- $factor := 1 -}}
{{- range until (regexReplaceAll "^[eE][+]?" . "" | atoi) }}{{ $factor = mul $factor 10 }}{{ end -}}
{{- $factor -}}
{{- end -}}
{{- end -}}

{{/* A number from values as the user wrote it: YAML makes 4294967296 a float that prints as 4.294967296e+09. */}}
{{- define "stemedb.scalar" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) -}}
{{- int64 . -}}
{{- else -}}
{{- toString . -}}
{{- end -}}
{{- end -}}

{{/* A number of pods, or a percentage of them. */}}
{{- define "stemedb.count" -}}
{{- if kindIs "string" . }}{{ . | quote }}{{ else }}{{ int . }}{{ end -}}
{{- end -}}

{{/* GOMEMLIMIT: 90 % of the memory limit in bytes, nothing without a limit. */}}
{{- define "stemedb.goMemLimit" -}}
{{- with get (get .Values.resources "limits" | default dict) "memory" -}}
{{- $bytes := include "stemedb.bytes" . | atoi -}}
{{- sub $bytes (div (add $bytes 9) 10) -}}
{{- end -}}
{{- end -}}

{{/* Whole seconds of a duration such as 15s, 2m or 1h. */}}
{{- define "stemedb.seconds" -}}
{{- $unit := regexReplaceAll "^[0-9]+" . "" -}}
{{- mul (regexReplaceAll "[a-z]+$" . "" | atoi) (get (dict "s" 1 "m" 60 "h" 3600) $unit) -}}
{{- end -}}
