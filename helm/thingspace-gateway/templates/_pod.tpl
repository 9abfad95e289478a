{{/* A source of one file in the pod. Arguments: of (with existingSecret or existingConfigMap, and key), path. */}}
{{- define "gateway.fileSource" -}}
{{- if .of.existingSecret -}}
- secret:
    name: {{ .of.existingSecret }}
    items: [{key: {{ .of.key }}, path: {{ .path }}}]
{{- else if .of.existingConfigMap -}}
- configMap:
    name: {{ .of.existingConfigMap }}
    items: [{key: {{ .of.key }}, path: {{ .path }}}]
{{- end -}}
{{- end -}}

{{/* The pod template of both forms. */}}
{{- define "gateway.pod" -}}
{{- $v := .Values -}}
metadata:
  labels:
    {{- $own := include "gateway.selector" . | fromYaml }}
    {{- merge $own $v.podLabels $v.commonLabels | toYaml | nindent 4 }}
  annotations:
    {{- $checksum := dict "checksum/config" (include "gateway.config" . | sha256sum) }}
    {{- merge $checksum $v.podAnnotations $v.commonAnnotations | toYaml | nindent 4 }}
spec:
  {{- with $v.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  serviceAccountName: {{ include "gateway.serviceAccountName" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext:
    {{- toYaml $v.podSecurityContext | nindent 4 }}
  terminationGracePeriodSeconds: {{ kindIs "invalid" $v.terminationGracePeriodSeconds | ternary (include "gateway.leastGrace" . | int) $v.terminationGracePeriodSeconds }}
  {{- with $v.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $v.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $v.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- $selector := dict "labelSelector" (dict "matchLabels" (include "gateway.selector" $ | fromYaml)) }}
    {{- range . }}
    - {{ hasKey . "labelSelector" | ternary . (merge (deepCopy .) $selector) | toYaml | nindent 6 | trim }}
    {{- end }}
  {{- end }}
  containers:
    - name: gateway
      image: {{ include "gateway.image" . | quote }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      args: [serve, --config, /etc/thingspace-gateway/gateway.toml]
      {{- $url := and (eq $v.store.kind "nats") $v.store.nats.urlKey }}
      {{- if or $url $v.extraEnv }}
      env:
        {{- if $url }}
        - name: THINGSPACE_GATEWAY__STORE__NATS__URL
          valueFrom:
            secretKeyRef:
              name: {{ $v.store.nats.existingSecret }}
              key: {{ $v.store.nats.urlKey }}
        {{- end }}
        {{- with $v.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
      {{- with $v.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: grpc
          containerPort: {{ $v.grpc.port }}
        {{- if $v.callbacks.enabled }}
        - name: callbacks
          containerPort: {{ $v.callbacks.port }}
        {{- end }}
        - name: admin
          containerPort: {{ $v.admin.port }}
      livenessProbe:
        httpGet:
          path: /livez
          port: admin
        {{- toYaml $v.livenessProbe | nindent 8 }}
      readinessProbe:
        httpGet:
          path: /readyz
          port: admin
        {{- toYaml $v.readinessProbe | nindent 8 }}
      {{- if gt (int $v.preStopSeconds) 0 }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ $v.preStopSeconds }}
      {{- end }}
      resources:
        {{- toYaml $v.resources | nindent 8 }}
      securityContext:
        {{- toYaml $v.securityContext | nindent 8 }}
      volumeMounts:
        - name: config
          mountPath: /etc/thingspace-gateway
          readOnly: true
        {{- if eq $v.store.kind "embedded" }}
        - name: data
          mountPath: /var/lib/thingspace-gateway
        {{- else }}
        - name: run
          mountPath: /run/thingspace-gateway
        {{- end }}
        {{- with $v.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    # One volume, so that no mount lies inside another. A changed Secret appears here without a restart.
    - name: config
      projected:
        defaultMode: 0440
        sources:
          - configMap:
              name: {{ include "gateway.fullname" . }}
              items: [{key: gateway.toml, path: gateway.toml}]
          {{- range $v.credentials }}
          {{- $keys := default dict .keys }}
          - secret:
              name: {{ .existingSecret }}
              items:
                {{- $name := .name }}
                {{- range list "key" "secret" "username" "password" }}
                - key: {{ get $keys . | default . }}
                  path: credentials/{{ $name }}/{{ . }}
                {{- end }}
          {{- end }}
          {{- with $v.grpc.tls }}
          {{- if .existingSecret }}
          - secret:
              name: {{ .existingSecret }}
              items:
                - {key: {{ .certKey }}, path: grpc-tls/tls.crt}
                - {key: {{ .keyKey }}, path: grpc-tls/tls.key}
          {{- end }}
          {{- with include "gateway.fileSource" (dict "of" .clientCa "path" "grpc-tls/client-ca.crt") }}
          {{- . | nindent 10 }}
          {{- end }}
          {{- end }}
          {{- with $v.auth }}
          {{- with include "gateway.fileSource" (dict "of" .tokens "path" "auth/tokens") }}
          {{- . | nindent 10 }}
          {{- end }}
          {{- with include "gateway.fileSource" (dict "of" .jwt.keySet "path" "auth/jwks.json") }}
          {{- . | nindent 10 }}
          {{- end }}
          {{- with include "gateway.fileSource" (dict "of" .jwt.ca "path" "auth/ca.crt") }}
          {{- . | nindent 10 }}
          {{- end }}
          {{- if .kubernetes.enabled }}
          - configMap:
              name: kube-root-ca.crt
              items: [{key: ca.crt, path: kubernetes/ca.crt}]
          # Only for the request for the cluster's public keys.
          - serviceAccountToken: {path: kubernetes/token}
          {{- end }}
          {{- end }}
          {{- if $v.callbacks.enabled }}
          {{- with $v.callbacks.tls }}
          {{- if .existingSecret }}
          - secret:
              name: {{ .existingSecret }}
              items:
                - {key: {{ .certKey }}, path: callbacks-tls/tls.crt}
                - {key: {{ .keyKey }}, path: callbacks-tls/tls.key}
          {{- end }}
          {{- end }}
          {{- if $v.callbacks.existingSecret }}
          - secret:
              name: {{ $v.callbacks.existingSecret }}
              items:
                - {key: {{ $v.callbacks.usernameKey }}, path: callbacks/username}
                - {key: {{ $v.callbacks.passwordKey }}, path: callbacks/password}
          {{- end }}
          {{- end }}
          {{- if eq $v.store.kind "nats" }}
          {{- with $v.store.nats }}
          {{- if and .existingSecret .credsKey }}
          - secret:
              name: {{ .existingSecret }}
              items:
                - {key: {{ .credsKey }}, path: nats/creds}
          {{- end }}
          {{- if and .existingSecret .usernameKey }}
          - secret:
              name: {{ .existingSecret }}
              items:
                - {key: {{ .usernameKey }}, path: nats/username}
                - {key: {{ .passwordKey }}, path: nats/password}
          {{- end }}
          {{- if .tls.existingSecret }}
          - secret:
              name: {{ .tls.existingSecret }}
              items:
                {{- if .tls.caKey }}
                - {key: {{ .tls.caKey }}, path: nats-tls/ca.crt}
                {{- end }}
                {{- if .tls.certKey }}
                - {key: {{ .tls.certKey }}, path: nats-tls/tls.crt}
                - {key: {{ .tls.keyKey }}, path: nats-tls/tls.key}
                {{- end }}
          {{- end }}
          {{- end }}
          {{- end }}
    {{- if eq $v.store.kind "nats" }}
    # For the socket of operator commands.
    - name: run
      emptyDir:
        medium: Memory
        sizeLimit: 1Mi
    {{- else if $v.store.embedded.existingClaim }}
    - name: data
      persistentVolumeClaim:
        claimName: {{ $v.store.embedded.existingClaim }}
    {{- end }}
    {{- with $v.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
