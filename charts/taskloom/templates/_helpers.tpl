{{/* What names of objects begin with. */}}
{{- define "taskloom.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The operator's Deployment, roles and so on. */}}
{{- define "taskloom.operator" -}}
{{- printf "%s-operator" (include "taskloom.fullname" .) -}}
{{- end -}}

{{/* What does not belong to a namespace has it in its name, so that two releases do not meet. */}}
{{- define "taskloom.clusterName" -}}
{{- printf "%s-%s-operator" .Release.Namespace (include "taskloom.fullname" .) -}}
{{- end -}}

{{- define "taskloom.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "taskloom.operator" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "taskloom.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: taskloom
{{- end -}}

{{/* What the operator's pods are found by. */}}
{{- define "taskloom.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* An image, of a dictionary with image and root. */}}
{{- define "taskloom.image" -}}
{{- $tag := default .root.Chart.AppVersion .image.tag -}}
{{- if hasPrefix "sha256:" $tag -}}
{{- printf "%s@%s" .image.repository $tag -}}
{{- else -}}
{{- printf "%s:%s" .image.repository $tag -}}
{{- end -}}
{{- end -}}

{{/* Where `helm test` makes its cluster: in a namespace that the operator looks at. */}}
{{- define "taskloom.testNamespace" -}}
{{- if and .Values.watchNamespaces (not (has .Release.Namespace .Values.watchNamespaces)) -}}
{{- first .Values.watchNamespaces -}}
{{- else -}}
{{- .Release.Namespace -}}
{{- end -}}
{{- end -}}

{{/*
What the operator may do, where it looks: what it does, and no more.
No rule names Secrets: theirs are called after the clusters, which are not known here, and a rule with names cannot allow
"create" anyway. It reads, makes and changes them one by one; it cannot list or watch them, so that it finds none whose name it
does not know.
*/}}
{{- define "taskloom.rules" -}}
# a TaskJob has a TaskCluster made; what is finished is deleted after a while
- apiGroups: [taskloom.dev]
  resources: [taskclusters]
  verbs: [list, watch, create, patch, delete]
# a group gets its cluster among its owners
- apiGroups: [taskloom.dev]
  resources: [taskworkergroups]
  verbs: [list, watch, patch]
- apiGroups: [taskloom.dev]
  resources: [taskjobs]
  verbs: [list, watch, delete]
- apiGroups: [taskloom.dev]
  resources: [taskclusters/status, taskworkergroups/status, taskjobs/status]
  verbs: [patch]
# workers
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, create, delete]
# the last lines of a TaskJob's program
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch]
# schedulers
- apiGroups: [""]
  resources: [services]
  verbs: [list, watch, create, patch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list, watch, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, watch, create, patch, delete]
# the program of a TaskJob
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
