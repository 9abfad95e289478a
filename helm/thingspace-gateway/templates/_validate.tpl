{{/* Everything that would not work, at once; what has the wrong shape the schema refuses before. */}}
{{- define "gateway.validate" -}}
{{- $problems := list -}}
{{- $v := .Values -}}
{{- if not $v.image.repository -}}
{{- $problems = append $problems "image.repository: is required: no image is published. Build one with the repository's Dockerfile, and name it here" -}}
{{- end -}}
{{- if not (dig "grpc" "allow_unauthenticated_remote_callers" false $v.config) -}}
{{- $problems = append $problems "config.grpc.allow_unauthenticated_remote_callers: must be true: callers are not authenticated yet, so whoever reaches the port can order on your ThingSpace accounts. Name those who may in networkPolicy.grpc.from, and say here that you accept the rest" -}}
{{- end -}}
{{- if not $v.credentials -}}
{{- $problems = append $problems "credentials: there are none; name at least one Secret and the accounts that it serves" -}}
{{- end -}}
{{- $names := list -}}
{{- range $v.credentials -}}
{{- if has .name $names -}}
{{- $problems = append $problems (printf "credentials: the name %s is there twice" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- if eq $v.store.kind "embedded" -}}
{{- if gt (int $v.replicaCount) 1 -}}
{{- $problems = append $problems (printf "replicaCount: %d gateways cannot share one embedded store; use 1, or store.kind=nats" (int $v.replicaCount)) -}}
{{- end -}}
{{- else -}}
{{- if and (not $v.store.nats.url) (not $v.store.nats.urlKey) -}}
{{- $problems = append $problems "store.nats.url: is required, or store.nats.urlKey in store.nats.existingSecret; the chart brings no NATS" -}}
{{- end -}}
{{- if and $v.store.nats.url $v.store.nats.urlKey -}}
{{- $problems = append $problems "store.nats: url and urlKey are both set; leave one out" -}}
{{- end -}}
{{- if and $v.store.nats.urlKey (not $v.store.nats.existingSecret) -}}
{{- $problems = append $problems "store.nats.existingSecret: is required for store.nats.urlKey" -}}
{{- end -}}
{{- with $v.store.nats.tls -}}
{{- if and .existingSecret (not .caKey) (not .certKey) -}}
{{- $problems = append $problems "store.nats.tls: nothing of existingSecret is used; set caKey, or certKey and keyKey" -}}
{{- end -}}
{{- if and .existingSecret (ne (empty .certKey) (empty .keyKey)) -}}
{{- $problems = append $problems "store.nats.tls: certKey and keyKey belong together; set both or none" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $callbacks := default dict $v.config.callbacks -}}
{{- if and $callbacks.register (not $v.callbacks.enabled) -}}
{{- $problems = append $problems "config.callbacks.register: there is no listener to register; set callbacks.enabled=true" -}}
{{- end -}}
{{- if and $callbacks.register (not $callbacks.public_url) -}}
{{- $problems = append $problems "config.callbacks.public_url: is required to register; write where ThingSpace reaches the callbacks' Service" -}}
{{- end -}}
{{- with $v.callbacks.service -}}
{{- if and $v.callbacks.enabled (eq .type "ClusterIP") .nodePort -}}
{{- $problems = append $problems "callbacks.service.nodePort: a ClusterIP has none; set callbacks.service.type to NodePort or LoadBalancer" -}}
{{- end -}}
{{- if and $v.callbacks.enabled (eq .type "ClusterIP") .externalTrafficPolicy -}}
{{- $problems = append $problems "callbacks.service.externalTrafficPolicy: nothing outside reaches a ClusterIP; set callbacks.service.type to NodePort or LoadBalancer" -}}
{{- end -}}
{{- if and $v.callbacks.enabled (ne .type "LoadBalancer") .loadBalancerSourceRanges -}}
{{- $problems = append $problems (printf "callbacks.service.loadBalancerSourceRanges: Kubernetes takes them with callbacks.service.type=LoadBalancer only, not with %s" .type) -}}
{{- end -}}
{{- end -}}
{{- if ne (len (uniq (list (int $v.grpc.port) (int $v.callbacks.port) (int $v.admin.port)))) 3 -}}
{{- $problems = append $problems "grpc.port, callbacks.port and admin.port: must differ" -}}
{{- end -}}
{{- if $v.networkPolicy.enabled -}}
{{- if not $v.networkPolicy.grpc.from -}}
{{- $problems = append $problems "networkPolicy.grpc.from: nobody could call the gateway; name those who may, or set networkPolicy.enabled=false" -}}
{{- end -}}
{{- if and $v.callbacks.enabled (not $v.networkPolicy.callbacks.from) -}}
{{- $problems = append $problems "networkPolicy.callbacks.from: no callback could arrive; name where they come from: your ingress, or everywhere, [{ipBlock: {cidr: 0.0.0.0/0}}]" -}}
{{- end -}}
{{- end -}}
{{- if and (not (kindIs "invalid" $v.podDisruptionBudget.minAvailable)) (not (kindIs "invalid" $v.podDisruptionBudget.maxUnavailable)) -}}
{{- $problems = append $problems "podDisruptionBudget: minAvailable and maxUnavailable are both set; Kubernetes takes one" -}}
{{- end -}}
{{- $least := include "gateway.leastGrace" . | int -}}
{{- if and (not (kindIs "invalid" $v.terminationGracePeriodSeconds)) (lt (int $v.terminationGracePeriodSeconds) $least) -}}
{{- $problems = append $problems (printf "terminationGracePeriodSeconds: %d would kill a gateway that still drains; at least %d: preStopSeconds, config.grpc.drain and ten more" (int $v.terminationGracePeriodSeconds) $least) -}}
{{- end -}}
{{- if $problems -}}
{{- fail (printf "\n\n  %s\n" (join "\n  " $problems)) -}}
{{- end -}}
{{- end -}}
