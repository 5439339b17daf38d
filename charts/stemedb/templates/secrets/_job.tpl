{{/*
The Job is needed if the Secret is generated, and as a hook also with the other
sources, to compare the values before a change.
*/}}
{{- define "stemedb.hasSecretJob" -}}
{{- $secrets := .Values.secrets -}}
{{- if and $secrets.job.enabled (or $secrets.job.hook (eq $secrets.source "generated")) }}true{{ end -}}
{{- end -}}

{{/*
A list of root and weight. The Job's objects are created in the order of their
weights and deleted when the hook has succeeded. Without hooks they are ordinary
objects.
*/}}
{{- define "stemedb.secretHook" -}}
{{- $secrets := (index . 0).Values.secrets -}}
{{- if $secrets.job.hook -}}
helm.sh/hook: {{ ternary "pre-install,pre-upgrade,pre-rollback" "pre-upgrade,pre-rollback" (eq $secrets.source "generated") }}
helm.sh/hook-weight: {{ index . 1 | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
{{- end -}}

{{/*
The template of a Job is immutable, so a changed ordinary Job needs a new name:
the name contains a hash of the Job's content.
*/}}
{{- define "stemedb.secretJobObjectName" -}}
{{- if .Values.secrets.job.hook -}}
{{- include "stemedb.secretJobName" . -}}
{{- else -}}
{{- $runs := printf "%s%s%s" (include "stemedb.secretJobSpec" .) (toJson .Values.merge.secretJob) (toJson .Values.patch.secretJob) -}}
{{- printf "%s-secret-%s" (include "stemedb.fullname" .) (sha256sum $runs | trunc 8) -}}
{{- end -}}
{{- end -}}

{{- define "stemedb.secretJobArgs" -}}
{{- $secrets := .Values.secrets -}}
{{- $args := list
      (printf "--source=%s" $secrets.source)
      (printf "--namespace=%s" .Release.Namespace)
      (printf "--statefulset=%s" (include "stemedb.fullname" .))
      (printf "--name=%s" (include "stemedb.secretName" .))
      (printf "--root-key-field=%s" $secrets.keys.rootApiKey)
      (printf "--cluster-secret-field=%s" $secrets.keys.clusterSecret) -}}
{{- if eq $secrets.source "externalSecret" }}{{ $args = append $args (printf "--staged-name=%s" (include "stemedb.stagedName" .)) }}{{ end -}}
{{- if $secrets.job.hook }}{{ $args = append $args "--hook" }}{{ end -}}
{{- if $secrets.acceptNewValues }}{{ $args = append $args "--accept-new-values" }}{{ end -}}
{{- toYaml $args -}}
{{- end -}}
