{{/* The name of all objects. Leaves room for "-callbacks" and for the hash that a StatefulSet appends in a label. */}}
{{- define "gateway.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "gateway.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "gateway.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "gateway.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- define "gateway.serviceAccountName" -}}
{{- default (ternary (include "gateway.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "gateway.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default .Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "gateway.headless" -}}
{{- printf "%s-headless" (include "gateway.fullname" .) -}}
{{- end -}}

{{/* The labels that never change during the life of a release. */}}
{{- define "gateway.releaseLabels" -}}
app.kubernetes.io/name: {{ include "gateway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "gateway.selector" -}}
{{ include "gateway.releaseLabels" . }}
app.kubernetes.io/component: gateway
{{- end -}}

{{- define "gateway.testSelector" -}}
{{ include "gateway.releaseLabels" . }}
app.kubernetes.io/component: test
{{- end -}}

{{/* Name, namespace, labels and annotations of an object. Arguments: context, suffix, component, labels, annotations. */}}
{{- define "gateway.metadata" -}}
{{- $ := .context -}}
name: {{ printf "%s%s" (include "gateway.fullname" $) (default "" .suffix) }}
namespace: {{ include "gateway.namespace" $ }}
labels:
  {{- $own := dict
    "helm.sh/chart" (printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_")
    "app.kubernetes.io/name" (include "gateway.name" $)
    "app.kubernetes.io/instance" $.Release.Name
    "app.kubernetes.io/version" $.Chart.AppVersion
    "app.kubernetes.io/component" (default "gateway" .component)
    "app.kubernetes.io/managed-by" $.Release.Service }}
  {{- merge $own (default dict .labels) $.Values.commonLabels | toYaml | nindent 2 }}
{{- with merge (dict) (default dict .annotations) $.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The port of a URL. Arguments: url, default. */}}
{{- define "gateway.urlPort" -}}
{{- $url := urlParse .url -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- if $port -}}{{ $port }}{{- else if eq $url.scheme "https" -}}443{{- else if eq $url.scheme "http" -}}80{{- else -}}{{ .default }}{{- end -}}
{{- end -}}

{{/* Converts a duration of the gateway to milliseconds. */}}
{{- define "gateway.milliseconds" -}}
{{- $milliseconds := 0 -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 "d" 86400000 -}}
{{- range regexFindAll "[0-9]+(ms|s|m|h|d)" . -1 -}}
{{- $unit := regexFind "[a-z]+" . -}}
{{- $milliseconds = add $milliseconds (mul (trimSuffix $unit . | int64) (get $units $unit)) -}}
{{- end -}}
{{- $milliseconds -}}
{{- end -}}

{{/* The value of a key in `config`, or its default. Arguments: config, key, default. */}}
{{- define "gateway.setting" -}}
{{- $value := .config -}}
{{- range splitList "." .key -}}
{{- $value = kindIs "map" $value | ternary (get (default dict $value) .) "" -}}
{{- end -}}
{{- kindIs "invalid" $value | ternary .default $value | default .default -}}
{{- end -}}

{{/* The longest time for a drain, in seconds, rounded up. */}}
{{- define "gateway.drainSeconds" -}}
{{- $durations := (.Files.Get "files/bounds.json" | fromJson).durations -}}
{{- $drain := dict "config" .Values.config "key" "grpc.drain" "default" (get $durations "grpc.drain").default -}}
{{- div (add (include "gateway.milliseconds" (include "gateway.setting" $drain) | int64) 999) 1000 -}}
{{- end -}}

{{/* The minimum of terminationGracePeriodSeconds. */}}
{{- define "gateway.leastGrace" -}}
{{- add .Values.preStopSeconds (include "gateway.drainSeconds" . | int64) 10 -}}
{{- end -}}

{{/* Converts an amount of memory to bytes. */}}
{{- define "gateway.bytes" -}}
{{- $text := toString . -}}
{{- $unit := regexFind "[A-Za-z]*$" $text -}}
{{- $units := dict "" 1.0 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 -}}
{{- mulf (trimSuffix $unit $text | float64) (get $units $unit) | int64 -}}
{{- end -}}

{{/* "plaintext" if a URL has the plaintext scheme and leads to another machine; otherwise empty. Arguments: url, scheme. */}}
{{- define "gateway.plaintext" -}}
{{- if and (hasPrefix (printf "%s://" .scheme) .url) (not (regexMatch "^[a-z]+://(localhost|127\\.[0-9.]+|\\[::1\\])([:/]|$)" .url)) -}}
plaintext
{{- end -}}
{{- end -}}

{{/* How Prometheus scrapes a gateway. Arguments: the values of a monitor. */}}
{{- define "gateway.scrape" -}}
path: /metrics
{{- with .interval }}
interval: {{ . }}
{{- end }}
{{- with .scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
{{- with .relabelings }}
relabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
