package pipeline

import (
	"context"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/stemedb/stemedb/ci/protobuf"
)

// generator is a package whose tests compare generated files with their source, and
// write them when they are called with -update.
type generator struct {
	module, folder string
	writes         map[string]string // test: file, from the root
}

// generators are all generated files apart from the code of the .proto files, which
// package protobuf writes and compares.
var generators = []generator{
	{".", "./server/internal/api", map[string]string{"TestOpenAPIJSONIsUpToDate": "server/internal/api/openapi.json"}},
	{".", "./server/internal/config", map[string]string{"TestTheSettingsPageIsTheTables": "docs/settings.md"}},
	{".", "./server/internal/node", map[string]string{"TestTheMetricsPageIsTheRegistrys": "docs/metrics.md"}},
	{"test", "./chart", map[string]string{
		"TestReadmeListsTheValues":        "charts/stemedb/README.md",
		"TestDefaultsAreThoseOfTheValues": "charts/stemedb/files/defaults.yaml",
	}},
}

// Generate writes every generated file. A test fails while one of them is stale.
func (p *Pipeline) Generate(ctx context.Context) error {
	if err := p.Reporter.Step(ctx, "generate the code of the .proto files", func(ctx context.Context) error {
		_, err := protobuf.Write(ctx, p.Runner, filepath.Join(p.Root, "ci"), filepath.Join(p.Root, "server"))
		return err
	}); err != nil {
		return err
	}
	for _, g := range generators {
		files := strings.Join(slices.Sorted(maps.Values(g.writes)), ", ")
		tests := strings.Join(slices.Sorted(maps.Keys(g.writes)), "|")
		if err := p.Reporter.Step(ctx, "generate "+files, func(ctx context.Context) error {
			_, err := p.quiet(ctx, g.module, []string{"GOWORK=off"}, "go", "test", g.folder, "-run", "^("+tests+")$", "-update")
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}
