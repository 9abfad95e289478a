{{/* A scalar or a list of scalars in TOML. Helm reads all numbers as floats, even whole ones. */}}
{{- define "gateway.tomlValue" -}}
{{- if kindIs "float64" . -}}
{{- if eq (floor .) . -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- else if kindIs "slice" . -}}
{{- $items := list -}}
{{- range . -}}{{- $items = append $items (include "gateway.tomlValue" .) -}}{{- end -}}
[{{ join ", " $items }}]
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end -}}

{{/* A table and the tables in it. Arguments: name, table. */}}
{{- define "gateway.tomlTable" -}}
{{- $name := .name -}}
{{- range $key, $value := .table -}}
{{- if not (kindIs "map" $value) }}
{{ $key }} = {{ include "gateway.tomlValue" $value }}
{{- end -}}
{{- end -}}
{{- range $key, $value := .table -}}
{{- if kindIs "map" $value -}}
{{- $path := ternary $key (printf "%s.%s" $name $key) (empty $name) }}

[{{ $path }}]
{{- include "gateway.tomlTable" (dict "name" $path "table" $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* gateway.toml: `config`, overridden by the keys that follow from other values. */}}
{{- define "gateway.config" -}}
{{- $v := .Values -}}
{{- $etc := "/etc/thingspace-gateway" -}}
{{- $address := $v.bindAddress -}}
{{- $callbacks := dict "enabled" $v.callbacks.enabled "listen" (printf "%s:%d" $address (int $v.callbacks.port)) -}}
{{- if $v.callbacks.tls.existingSecret -}}
{{- $_ := set $callbacks "tls_cert_file" (printf "%s/callbacks-tls/tls.crt" $etc) -}}
{{- $_ := set $callbacks "tls_key_file" (printf "%s/callbacks-tls/tls.key" $etc) -}}
{{- end -}}
{{- if $v.callbacks.existingSecret -}}
{{- $_ := set $callbacks "username_file" (printf "%s/callbacks/username" $etc) -}}
{{- $_ := set $callbacks "password_file" (printf "%s/callbacks/password" $etc) -}}
{{- end -}}
{{- $store := dict "kind" $v.store.kind -}}
{{- if eq $v.store.kind "embedded" -}}
{{- $_ := set $store "path" "/var/lib/thingspace-gateway/store.redb" -}}
{{- else -}}
{{- $nats := dict -}}
{{- with $v.store.nats -}}
{{- if .url -}}{{- $_ := set $nats "url" .url -}}{{- end -}}
{{- if and .existingSecret .credsKey -}}
{{- $_ := set $nats "creds_file" (printf "%s/nats/creds" $etc) -}}
{{- end -}}
{{- if and .existingSecret .usernameKey -}}
{{- $_ := set $nats "username_file" (printf "%s/nats/username" $etc) -}}
{{- $_ := set $nats "password_file" (printf "%s/nats/password" $etc) -}}
{{- end -}}
{{- if .tls.existingSecret -}}
{{- if .tls.caKey -}}{{- $_ := set $nats "ca_file" (printf "%s/nats-tls/ca.crt" $etc) -}}{{- end -}}
{{- if .tls.certKey -}}
{{- $_ := set $nats "cert_file" (printf "%s/nats-tls/tls.crt" $etc) -}}
{{- $_ := set $nats "key_file" (printf "%s/nats-tls/tls.key" $etc) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $_ := set $store "nats" $nats -}}
{{- end -}}
{{- $grpc := dict "listen" (printf "%s:%d" $address (int $v.grpc.port)) -}}
{{- with $v.grpc.tls -}}
{{- if .existingSecret -}}
{{- $_ := set $grpc "tls_cert_file" (printf "%s/grpc-tls/tls.crt" $etc) -}}
{{- $_ := set $grpc "tls_key_file" (printf "%s/grpc-tls/tls.key" $etc) -}}
{{- end -}}
{{- if or .clientCa.existingSecret .clientCa.existingConfigMap -}}
{{- $_ := set $grpc "client_ca_file" (printf "%s/grpc-tls/client-ca.crt" $etc) -}}
{{- end -}}
{{- end -}}
{{- $own := dict
  "grpc" $grpc
  "admin" (dict "listen" (printf "%s:%d" $address (int $v.admin.port)))
  "callbacks" $callbacks
  "store" $store -}}
{{- $auth := dict -}}
{{- if or $v.auth.tokens.existingSecret $v.auth.tokens.existingConfigMap -}}
{{- $_ := set $auth "tokens_file" (printf "%s/auth/tokens" $etc) -}}
{{- end -}}
{{- $jwt := dict -}}
{{- if $v.auth.jwt.keySet.existingConfigMap -}}
{{- $_ := set $jwt "jwks_file" (printf "%s/auth/jwks.json" $etc) -}}
{{- end -}}
{{- if $v.auth.jwt.ca.existingConfigMap -}}
{{- $_ := set $jwt "jwks_ca_file" (printf "%s/auth/ca.crt" $etc) -}}
{{- end -}}
{{- with $v.auth.kubernetes -}}
{{- if .enabled -}}
{{- $jwt = dict
  "issuer" .issuer
  "audience" .audience
  "jwks_url" "https://kubernetes.default.svc/openid/v1/jwks"
  "jwks_ca_file" (printf "%s/kubernetes/ca.crt" $etc)
  "jwks_token_file" (printf "%s/kubernetes/token" $etc) -}}
{{- end -}}
{{- end -}}
{{- with $jwt -}}{{- $_ := set $auth "jwt" . -}}{{- end -}}
{{- with $auth -}}{{- $_ := set $own "auth" . -}}{{- end -}}
{{- if eq $v.store.kind "nats" -}}
{{- $_ := set $own "control" (dict "socket" "/run/thingspace-gateway/control.sock") -}}
{{- end -}}
# Rendered by Helm from the values of the release {{ .Release.Name }}; a change restarts the gateway.
{{- include "gateway.tomlTable" (dict "name" "" "table" (mergeOverwrite (deepCopy $v.config) $own)) }}
{{- range $v.auth.allow }}

[[auth.allow]]
callers = {{ toJson .callers }}
methods = {{ toJson .methods }}
accounts = {{ toJson .accounts }}
{{- end }}
{{- range $v.credentials }}

[[credentials]]
name = {{ toJson .name }}
accounts = {{ toJson .accounts }}
key_file = {{ printf "%s/credentials/%s/key" $etc .name | toJson }}
secret_file = {{ printf "%s/credentials/%s/secret" $etc .name | toJson }}
username_file = {{ printf "%s/credentials/%s/username" $etc .name | toJson }}
password_file = {{ printf "%s/credentials/%s/password" $etc .name | toJson }}
{{- end }}
{{- end -}}
