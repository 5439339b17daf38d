package e2e

import (
	"testing"
	"time"

	"github.com/gruntwork-io/terratest/modules/k8s"

	"github.com/stemedb/stemedb/docs/doctest"
)

// TestDocumentation installs a separate release for the documentation.
func TestDocumentation(t *testing.T) {
	t.Parallel()
	r := install(t, "docs")
	r.allWhole(t, 2*time.Minute)
	r.documentation(t)
}

// documentation runs the commands of docs/ against the release, like a reader
// with a project's key and an administrator's key.
func (r *release) documentation(t *testing.T) {
	t.Helper()
	url, done := r.tunnel(t, k8s.ResourceTypeService, r.name+"-stemedb", gatewayPort)
	defer done()
	doctest.Pages(t, "../..", doctest.Server{URL: url, Key: r.key, AdminKey: r.root})
}
