{{/* Fails with all problems of the values at once. The schema has already refused values of the wrong type. */}}
{{- define "gateway.validate" -}}
{{- $problems := list -}}
{{- $v := .Values -}}
{{- if not $v.image.repository -}}
{{- $problems = append $problems "image.repository: is required: no image is published. Build one with the repository's Dockerfile, and set its repository here" -}}
{{- end -}}
{{- $tokens := or $v.auth.tokens.existingSecret $v.auth.tokens.existingConfigMap -}}
{{- $jwt := or $v.auth.kubernetes.enabled $v.auth.jwt.keySet.existingConfigMap (dig "auth" "jwt" "jwks_url" "" $v.config) -}}
{{- $tls := $v.grpc.tls -}}
{{- $clientCa := or $tls.clientCa.existingSecret $tls.clientCa.existingConfigMap -}}
{{- $asks := or $tokens $jwt $clientCa -}}
{{- if and (not $tls.existingSecret) (not (dig "grpc" "allow_plaintext" false $v.config)) -}}
{{- $problems = append $problems "grpc.tls.existingSecret: is required: without TLS, tokens and orders cross the network in plain text. Name a Secret with a certificate, or accept that risk with config.grpc.allow_plaintext: true, for example behind a mesh" -}}
{{- end -}}
{{- if and $tls.existingSecret (or (not $tls.certKey) (not $tls.keyKey)) -}}
{{- $problems = append $problems "grpc.tls: certKey and keyKey name keys of existingSecret; set both" -}}
{{- end -}}
{{- if and $clientCa (not $tls.existingSecret) -}}
{{- $problems = append $problems "grpc.tls.clientCa: client certificates need TLS; set grpc.tls.existingSecret" -}}
{{- end -}}
{{- if and $tls.clientCa.existingSecret $tls.clientCa.existingConfigMap -}}
{{- $problems = append $problems "grpc.tls.clientCa: existingSecret and existingConfigMap are both set; set one of them" -}}
{{- end -}}
{{- if eq (dig "grpc" "client_cert" "optional" $v.config) "required" -}}
{{- if not $clientCa -}}
{{- $problems = append $problems "config.grpc.client_cert: no authorities verify the certificates; set grpc.tls.clientCa" -}}
{{- end -}}
{{- if $v.helmTest.enabled -}}
{{- $problems = append $problems "helmTest.enabled: the test has no client certificate, which config.grpc.client_cert requires; set it to false" -}}
{{- end -}}
{{- end -}}
{{- if and (not $asks) (not (dig "grpc" "allow_unauthenticated_remote_callers" false $v.config)) -}}
{{- $problems = append $problems "auth: callers are not authenticated, so every client that reaches the port could place orders on your ThingSpace accounts: set auth.tokens, auth.jwt, auth.kubernetes or grpc.tls.clientCa, or accept that risk with config.grpc.allow_unauthenticated_remote_callers: true" -}}
{{- end -}}
{{- if and $v.auth.tokens.existingSecret $v.auth.tokens.existingConfigMap -}}
{{- $problems = append $problems "auth.tokens: existingSecret and existingConfigMap are both set; set one of them" -}}
{{- end -}}
{{- $jwtConfig := default dict (dig "auth" "jwt" dict $v.config) -}}
{{- if $v.auth.kubernetes.enabled -}}
{{- if or $jwtConfig.issuer $jwtConfig.audience $jwtConfig.jwks_url $v.auth.jwt.keySet.existingConfigMap $v.auth.jwt.ca.existingConfigMap -}}
{{- $problems = append $problems "auth.kubernetes: takes the place of auth.jwt and config.auth.jwt; remove these, or set auth.kubernetes.enabled=false" -}}
{{- end -}}
{{- else -}}
{{- if and $jwtConfig.jwks_url $v.auth.jwt.keySet.existingConfigMap -}}
{{- $problems = append $problems "auth.jwt.keySet: config.auth.jwt.jwks_url is set, too; set only one of them" -}}
{{- end -}}
{{- range $key := list "issuer" "audience" -}}
{{- $value := get $jwtConfig $key -}}
{{- if and $jwt (not $value) -}}
{{- $problems = append $problems (printf "config.auth.jwt.%s: is required to verify tokens" $key) -}}
{{- else if and $value (not $jwt) -}}
{{- $problems = append $problems (printf "config.auth.jwt.%s: no key set verifies the tokens; set config.auth.jwt.jwks_url or auth.jwt.keySet" $key) -}}
{{- end -}}
{{- end -}}
{{- if and $v.auth.jwt.ca.existingConfigMap (not $jwtConfig.jwks_url) -}}
{{- $problems = append $problems "auth.jwt.ca: is used only with config.auth.jwt.jwks_url" -}}
{{- end -}}
{{- if include "gateway.plaintext" (dict "scheme" "http" "url" (default "" $jwtConfig.jwks_url)) -}}
{{- $problems = append $problems "config.auth.jwt.jwks_url: http:// to another machine lets anybody on the way replace the keys; write https://" -}}
{{- end -}}
{{- end -}}
{{- if not $v.credentials -}}
{{- $problems = append $problems "credentials: there are none; add at least one entry with a Secret and its accounts" -}}
{{- end -}}
{{- $names := list -}}
{{- range $v.credentials -}}
{{- if has .name $names -}}
{{- $problems = append $problems (printf "credentials: the name %s is used twice; rename one" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- $accounts := list -}}
{{- range $v.credentials -}}
{{- range .accounts -}}
{{- if has . $accounts -}}
{{- $problems = append $problems (printf "credentials: the account %s is listed twice; remove one" .) -}}
{{- end -}}
{{- $accounts = append $accounts . -}}
{{- end -}}
{{- end -}}
{{- if and $asks (not $v.auth.allow) -}}
{{- $problems = append $problems "auth.allow: there are no entries, so no caller may do anything; add one" -}}
{{- end -}}
{{- range $n, $entry := $v.auth.allow -}}
{{- range .callers -}}
{{- $kind := regexFind "^[a-z]+" . -}}
{{- if or (and (eq $kind "token") (not $tokens)) (and (eq $kind "jwt") (not $jwt)) (and (has $kind (list "spiffe" "dns")) (not $clientCa)) (and (eq $kind "anonymous") $asks) -}}
{{- $problems = append $problems (printf "auth.allow #%d: the caller %s never calls: set auth.tokens for token:, auth.jwt or auth.kubernetes for jwt:, grpc.tls.clientCa for spiffe:// and dns:, and none of them for anonymous" (add $n 1) .) -}}
{{- end -}}
{{- end -}}
{{- range .accounts -}}
{{- if and (ne . "*") (not (has . $accounts)) -}}
{{- $problems = append $problems (printf "auth.allow #%d: the account %s is not listed in credentials" (add $n 1) .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $name := include "gateway.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- $problems = append $problems (printf "fullnameOverride: the name %s is not valid in Kubernetes; it must consist of lower-case letters, digits and hyphens, and begin with a letter" $name) -}}
{{- end -}}
{{- $file := .Files.Get "files/bounds.json" | fromJson -}}
{{- range $key, $bounds := $file.durations -}}
{{- $value := include "gateway.setting" (dict "config" $v.config "key" $key "default" $bounds.default) -}}
{{- $least := $bounds.least -}}
{{- $minimum := $least -}}
{{- if hasKey $file.durations $least -}}
{{- $least = include "gateway.setting" (dict "config" $v.config "key" $least "default" (get $file.durations $least).default) -}}
{{- $minimum = printf "%s (%s)" $bounds.least $least -}}
{{- end -}}
{{- $milliseconds := include "gateway.milliseconds" $value | int64 -}}
{{- if or (lt $milliseconds (include "gateway.milliseconds" $least | int64)) (gt $milliseconds (include "gateway.milliseconds" $bounds.most | int64)) -}}
{{- $problems = append $problems (printf "config.%s: %s is out of bounds; must be %s to %s" $key $value $minimum $bounds.most) -}}
{{- end -}}
{{- end -}}
{{- range $v.extraEnv -}}
{{- if has .name $file.variables -}}
{{- $problems = append $problems (printf "extraEnv: %s would override what the chart derives from other values: ports, paths, the grace period or the memory; set `config`, or that other value" .name) -}}
{{- else if and (hasPrefix "THINGSPACE_GATEWAY_" .name) (not (hasPrefix "THINGSPACE_GATEWAY__" .name)) -}}
{{- $problems = append $problems (printf "extraEnv: %s is not a variable of the gateway; write THINGSPACE_GATEWAY__SECTION__KEY" .name) -}}
{{- else if hasPrefix "THINGSPACE_GATEWAY__CREDENTIALS" .name -}}
{{- $problems = append $problems (printf "extraEnv: %s: lists cannot come from the environment; set `credentials`" .name) -}}
{{- else if hasPrefix "THINGSPACE_GATEWAY__AUTH__ALLOW" .name -}}
{{- $problems = append $problems (printf "extraEnv: %s: lists cannot come from the environment; set `auth.allow`" .name) -}}
{{- end -}}
{{- end -}}
{{- $variables := list -}}
{{- range $v.extraEnv -}}
{{- if has .name $variables -}}
{{- $problems = append $problems (printf "extraEnv: %s is set twice; remove one" .name) -}}
{{- end -}}
{{- $variables = append $variables .name -}}
{{- end -}}
{{- $volumes := list "config" "data" "run" -}}
{{- range $v.extraVolumes -}}
{{- if has .name $volumes -}}
{{- $problems = append $problems (printf "extraVolumes: the name %s is used already; choose another" .name) -}}
{{- end -}}
{{- $volumes = append $volumes .name -}}
{{- end -}}
{{- range $v.extraVolumeMounts -}}
{{- if not (has .name $volumes) -}}
{{- $problems = append $problems (printf "extraVolumeMounts: there is no volume %s; add it to extraVolumes" .name) -}}
{{- end -}}
{{- end -}}
{{- $thingspace := default dict $v.config.thingspace -}}
{{- range $key := list "base_url" "token_url" -}}
{{- if and (include "gateway.plaintext" (dict "scheme" "http" "url" (default "" (get $thingspace $key)))) (not $thingspace.allow_plaintext) -}}
{{- $problems = append $problems (printf "config.thingspace.%s: http:// would send passwords and tokens in plain text; write https://, or accept that risk with config.thingspace.allow_plaintext: true" $key) -}}
{{- end -}}
{{- end -}}
{{- $base := default "" $thingspace.base_url -}}
{{- if and (regexMatch "(?i)^https?://([^/:]*[.])?verizon[.]com(:[0-9]+)?(/.*)?$" $base) (not (regexMatch "/api/*$" $base)) -}}
{{- $problems = append $problems "config.thingspace.base_url: must end with /api; write for example https://thingspace.verizon.com/api" -}}
{{- end -}}
{{- with $v.config.callbacks -}}
{{- if and (include "gateway.plaintext" (dict "scheme" "http" "url" (default "" .public_url))) (not .allow_plaintext) -}}
{{- $problems = append $problems "config.callbacks.public_url: with http:// callbacks cross the internet in plain text; write https://, or accept that risk with config.callbacks.allow_plaintext: true" -}}
{{- end -}}
{{- end -}}
{{- with $v.resources -}}
{{- $limit := dig "limits" "memory" "" . -}}
{{- $request := dig "requests" "memory" "" . -}}
{{- if $limit -}}
{{- $limit = include "gateway.bytes" $limit | int64 -}}
{{- $devices := include "gateway.setting" (dict "config" $v.config "key" "limits.open_devices" "default" $file.defaults.open_devices) | float64 | int64 -}}
{{- $requests := include "gateway.setting" (dict "config" $v.config "key" "grpc.max_request_bytes" "default" $file.defaults.max_request_bytes) | float64 | int64 -}}
{{- /* 224 MiB, and 256 MiB for the bytes of orders and of answers under way. */ -}}
{{- $least := add (mul $devices 4096) 503316480 $requests -}}
{{- if lt $limit $least -}}
{{- $problems = append $problems (printf "resources.limits.memory: %d open devices (config.limits.open_devices) can take 4 KiB each, incoming messages %dMi (config.grpc.max_request_bytes), and everything else 480Mi: %dMi in total; raise the limit, or lower config.limits.open_devices" $devices (div (add $requests 1048575) 1048576) (div (add $least 1048575) 1048576)) -}}
{{- end -}}
{{- if and $request (gt (include "gateway.bytes" $request | int64) $limit) -}}
{{- $problems = append $problems "resources: the memory request is larger than the limit" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $strategies := eq $v.store.kind "embedded" | ternary (list "RollingUpdate" "OnDelete") (list "RollingUpdate" "Recreate") -}}
{{- if and $v.updateStrategy.type (not (has $v.updateStrategy.type $strategies)) -}}
{{- $problems = append $problems (printf "updateStrategy.type: must be %s with store.kind=%s" (join " or " $strategies) $v.store.kind) -}}
{{- end -}}
{{- if eq $v.store.kind "embedded" -}}
{{- if gt (int $v.replicaCount) 1 -}}
{{- $problems = append $problems (printf "replicaCount: %d gateways cannot share one embedded store; use 1, or store.kind=nats" (int $v.replicaCount)) -}}
{{- end -}}
{{- else -}}
{{- if and (not $v.store.nats.url) (not $v.store.nats.urlKey) -}}
{{- $problems = append $problems "store.nats.url: is required, or store.nats.urlKey in store.nats.existingSecret; the chart contains no NATS" -}}
{{- end -}}
{{- if and $v.store.nats.url $v.store.nats.urlKey -}}
{{- $problems = append $problems "store.nats: url and urlKey are both set; set one of them" -}}
{{- end -}}
{{- if and $v.store.nats.urlKey (not $v.store.nats.existingSecret) -}}
{{- $problems = append $problems "store.nats.existingSecret: is required for store.nats.urlKey" -}}
{{- end -}}
{{- with $v.store.nats -}}
{{- if ne (empty .usernameKey) (empty .passwordKey) -}}
{{- $problems = append $problems "store.nats: usernameKey and passwordKey belong together; set both or neither" -}}
{{- end -}}
{{- if and .existingSecret .credsKey .usernameKey -}}
{{- $problems = append $problems "store.nats: credsKey and usernameKey are both set; set credsKey to \"\" for a user with a password" -}}
{{- end -}}
{{- if and .usernameKey (not .existingSecret) -}}
{{- $problems = append $problems "store.nats.existingSecret: is required for store.nats.usernameKey" -}}
{{- end -}}
{{- $tls := and .tls.existingSecret (or .tls.caKey .tls.certKey) -}}
{{- $allowed := dig "store" "nats" "allow_plaintext" false $v.config -}}
{{- range splitList "," (default "" .url) -}}
{{- if and (include "gateway.plaintext" (dict "scheme" "nats" "url" (trim .))) (not $tls) (not $allowed) -}}
{{- $problems = append $problems "store.nats.url: nats:// would send everything that is stored in plain text; write tls://, set store.nats.tls, or accept that risk with config.store.nats.allow_plaintext: true" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with $v.store.nats.tls -}}
{{- if and .existingSecret (not .caKey) (not .certKey) -}}
{{- $problems = append $problems "store.nats.tls: no key of existingSecret is used; set caKey, or certKey and keyKey" -}}
{{- end -}}
{{- if and .existingSecret (ne (empty .certKey) (empty .keyKey)) -}}
{{- $problems = append $problems "store.nats.tls: certKey and keyKey belong together; set both or neither" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $callbacks := default dict $v.config.callbacks -}}
{{- if and $callbacks.register (not $v.callbacks.enabled) -}}
{{- $problems = append $problems "config.callbacks.register: there is no listener to register; set callbacks.enabled=true" -}}
{{- end -}}
{{- if and $callbacks.register (not $callbacks.public_url) -}}
{{- $problems = append $problems "config.callbacks.public_url: is required to register; write the URL at which ThingSpace reaches the Service for callbacks" -}}
{{- end -}}
{{- with $v.callbacks -}}
{{- if and .enabled .tls.existingSecret (or (not .tls.certKey) (not .tls.keyKey)) -}}
{{- $problems = append $problems "callbacks.tls: certKey and keyKey name keys of existingSecret; set both" -}}
{{- end -}}
{{- if and .enabled .existingSecret (or (not .usernameKey) (not .passwordKey)) -}}
{{- $problems = append $problems "callbacks: usernameKey and passwordKey name keys of existingSecret; set both" -}}
{{- end -}}
{{- end -}}
{{- with $v.callbacks.service -}}
{{- if and $v.callbacks.enabled (eq .type "ClusterIP") .nodePort -}}
{{- $problems = append $problems "callbacks.service.nodePort: a ClusterIP Service has no node port; set callbacks.service.type to NodePort or LoadBalancer" -}}
{{- end -}}
{{- if and $v.callbacks.enabled (eq .type "ClusterIP") .externalTrafficPolicy -}}
{{- $problems = append $problems "callbacks.service.externalTrafficPolicy: it has no effect on a ClusterIP; set callbacks.service.type to NodePort or LoadBalancer" -}}
{{- end -}}
{{- if and $v.callbacks.enabled (ne .type "LoadBalancer") .loadBalancerSourceRanges -}}
{{- $problems = append $problems (printf "callbacks.service.loadBalancerSourceRanges: Kubernetes accepts them only with callbacks.service.type=LoadBalancer, not with %s" .type) -}}
{{- end -}}
{{- end -}}
{{- if ne (len (uniq (list (int $v.grpc.port) (int $v.callbacks.port) (int $v.admin.port)))) 3 -}}
{{- $problems = append $problems "grpc.port, callbacks.port and admin.port: must differ" -}}
{{- end -}}
{{- if $v.networkPolicy.enabled -}}
{{- if not $v.networkPolicy.grpc.from -}}
{{- $problems = append $problems "networkPolicy.grpc.from: no peer could call the gateway; name the peers that may, or set networkPolicy.enabled=false" -}}
{{- end -}}
{{- if and $v.callbacks.enabled (not $v.networkPolicy.callbacks.from) -}}
{{- $problems = append $problems "networkPolicy.callbacks.from: no callback could arrive; name the peers: your ingress, or everything, [{ipBlock: {cidr: 0.0.0.0/0}}]" -}}
{{- end -}}
{{- if and (or $v.metrics.serviceMonitor.enabled $v.metrics.podMonitor.enabled) (not $v.networkPolicy.admin.from) -}}
{{- $problems = append $problems "networkPolicy.admin.from: Prometheus could not scrape the gateway; name it, for example [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]" -}}
{{- end -}}
{{- end -}}
{{- if and (not (kindIs "invalid" $v.podDisruptionBudget.minAvailable)) (not (kindIs "invalid" $v.podDisruptionBudget.maxUnavailable)) -}}
{{- $problems = append $problems "podDisruptionBudget: minAvailable and maxUnavailable are both set; Kubernetes accepts only one of them" -}}
{{- end -}}
{{- with $v.podDisruptionBudget -}}
{{- $replicas := ternary (int $v.autoscaling.minReplicas) (int $v.replicaCount) $v.autoscaling.enabled -}}
{{- $blocks := "no gateway may be missing, so a drain of nodes would wait for ever" -}}
{{- if and .enabled (gt $replicas 0) -}}
{{- if not (kindIs "invalid" .minAvailable) -}}
{{- $least := toString .minAvailable -}}
{{- if hasSuffix "%" $least -}}
{{- $least = div (add (mul $replicas (trimSuffix "%" $least | int)) 99) 100 | toString -}}
{{- end -}}
{{- if ge (int $least) $replicas -}}
{{- $problems = append $problems (printf "podDisruptionBudget.minAvailable: %v of %d: %s" .minAvailable $replicas $blocks) -}}
{{- end -}}
{{- else if and (not (kindIs "invalid" .maxUnavailable)) (eq (trimSuffix "%" (toString .maxUnavailable) | int) 0) -}}
{{- $problems = append $problems (printf "podDisruptionBudget.maxUnavailable: %v: %s" .maxUnavailable $blocks) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.metrics.serviceMonitor.enabled $v.metrics.podMonitor.enabled -}}
{{- $problems = append $problems "metrics: serviceMonitor and podMonitor are both enabled, so every gateway would be scraped twice; enable one of them" -}}
{{- end -}}
{{- with $v.autoscaling -}}
{{- if .enabled -}}
{{- if ne $v.store.kind "nats" -}}
{{- $problems = append $problems "autoscaling.enabled: several gateways cannot share one embedded store; set store.kind=nats" -}}
{{- end -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- $problems = append $problems (printf "autoscaling: minReplicas (%d) is larger than maxReplicas (%d)" (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- if and (kindIs "invalid" .targetCPUUtilizationPercentage) (not .metrics) -}}
{{- $problems = append $problems "autoscaling: nothing decides about the number of gateways; set targetCPUUtilizationPercentage or metrics" -}}
{{- end -}}
{{- if and (not (kindIs "invalid" .targetCPUUtilizationPercentage)) (not (dig "requests" "cpu" "" $v.resources)) -}}
{{- $problems = append $problems "autoscaling.targetCPUUtilizationPercentage: is a part of resources.requests.cpu, which is not set" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $least := include "gateway.leastGrace" . | int -}}
{{- if and (not (kindIs "invalid" $v.terminationGracePeriodSeconds)) (lt (int $v.terminationGracePeriodSeconds) $least) -}}
{{- $problems = append $problems (printf "terminationGracePeriodSeconds: %d would kill a gateway that still drains; must be at least %d: preStopSeconds plus config.grpc.drain plus 10" (int $v.terminationGracePeriodSeconds) $least) -}}
{{- end -}}
{{- if $problems -}}
{{- fail (printf "\n\n  %s\n" (join "\n  " $problems)) -}}
{{- end -}}
{{- end -}}
