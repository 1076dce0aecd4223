{{- define "s0.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "s0.labels" -}}
app.kubernetes.io/name: s0
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* select: a list of the root and a component. */ -}}
{{- define "s0.select" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: s0
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- /* image: a list of the root and a program's image. */ -}}
{{- define "s0.image" -}}
{{- $root := index . 0 -}}
{{ $root.Values.images.registry }}/{{ index . 1 }}:{{ $root.Values.images.tag | default $root.Chart.AppVersion }}
{{- end -}}

{{- define "s0.secret" -}}
{{ .Values.secrets.existingSecret | default (printf "%s-keys" (include "s0.name" .)) }}
{{- end -}}

{{- define "s0.databaseSecret" -}}
{{ .Values.database.existingSecret | default (printf "%s-database" (include "s0.name" .)) }}
{{- end -}}

{{- /* A container that needs nothing of its host. */ -}}
{{- define "s0.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- /* Names by which pods of the cluster reach the API. */ -}}
{{- define "s0.hosts" -}}
{{- $svc := printf "%s-api" (include "s0.name" .) -}}
{{- $names := list $svc (printf "%s.%s" $svc .Release.Namespace) (printf "%s.%s.svc" $svc .Release.Namespace) (printf "%s.%s.svc.%s" $svc .Release.Namespace .Values.clusterDomain) -}}
{{ concat $names .Values.api.allowedHosts | join "," }}
{{- end -}}

{{- /* The mounts of who makes others see: at the same paths as on the host, for they are told to each other. */ -}}
{{- define "s0.node.mounts" -}}
- {name: data, mountPath: {{ .Values.node.dataDir }}, mountPropagation: Bidirectional}
- {name: run, mountPath: {{ .Values.node.runDir }}, mountPropagation: Bidirectional}
- {name: cgroup, mountPath: /sys/fs/cgroup}
- {name: modules, mountPath: /lib/modules, readOnly: true}
{{- end -}}

{{- /* Root that writes a directory of the host's, and nothing else. */ -}}
{{- define "s0.hostFiles" -}}
runAsUser: 0
{{ include "s0.unprivileged" . }}
{{- end -}}

{{- define "s0.small" -}}
requests: {cpu: 10m, memory: 16Mi}
limits: {memory: 256Mi}
{{- end -}}

{{- /* Everything else is taken from netd for good. */ -}}
{{- define "s0.netd.bounds" -}}
--bounding-set=-all,+net_admin,+sys_admin,+net_bind_service
{{- end -}}

{{- /* Where nodes join, as a host finds it: without the cluster's DNS, by the address that Kubernetes tells pods. */ -}}
{{- define "s0.node.controlPlane" -}}
{{ .Values.nodes.controlPlane | default (printf "$(%s_API_NODES_SERVICE_HOST):30082" (include "s0.name" . | upper | replace "-" "_")) }}
{{- end -}}

{{- define "s0.joinSecret" -}}
{{ .Values.nodes.joinSecret | default (printf "%s-join" (include "s0.name" .)) }}
{{- end -}}
