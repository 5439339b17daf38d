// Where the tests take other projects' CRDs from: their files lie in these
// modules, nothing of them is compiled. "go mod download" fetches them and
// "go list -m" says where they are; do not tidy, no package needs a module here.
module github.com/stemedb/stemedb/test/crds

go 1.26.0

require (
	github.com/cert-manager/cert-manager v1.21.2
	github.com/external-secrets/external-secrets v1.3.2
	github.com/prometheus-operator/prometheus-operator v0.85.0
	github.com/traefik/traefik/v3 v3.7.13
)
