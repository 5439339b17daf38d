// Package scan turns a directory into claims. It promises that the same code
// at the same revision gives the same claims, byte for byte.
package scan

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/stemedb/stemedb/aphoria/config"
	"github.com/stemedb/stemedb/aphoria/extract"
	"github.com/stemedb/stemedb/aphoria/revision"
	"github.com/stemedb/stemedb/aphoria/source"
	"github.com/stemedb/stemedb/server/record"
)

// Finding is an observation with the claim that it makes.
type Finding struct {
	extract.Observation
	Content record.Content
	ID      record.Hash
}

// Result is what a scan found.
type Result struct {
	Root     string
	Project  string
	Revision revision.Revision
	Findings []Finding
	Files    int            // that were read
	Passed   map[string]int // files that were not, by reason
	Warnings []string
}

// Count is the number of findings with the verdict.
func (r *Result) Count(v extract.Verdict) int {
	n := 0
	for i := range r.Findings {
		if r.Findings[i].Verdict == v {
			n++
		}
	}
	return n
}

// Run scans root. now dates what no revision dates.
func Run(ctx context.Context, root, stateDir string, cfg config.Config, registry *extract.Registry, now time.Time) (*Result, error) {
	// A link as the root itself is what the caller asked for; those below it
	// are not followed.
	root, err := filepath.EvalSymlinks(root)
	if err == nil {
		root, err = filepath.Abs(root)
	}
	if err != nil {
		return nil, fmt.Errorf("find the directory to scan: %w", err)
	}
	tree, err := source.Open(ctx, root, source.Options{
		Exclude: cfg.Scan.Exclude, IncludeTestdata: cfg.Scan.IncludeTestdata, MaxFileBytes: cfg.Scan.MaxFileBytes,
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = tree.Close() }() // only read

	res := &Result{Root: root, Project: cfg.Project.Name, Passed: tree.Passed}
	if res.Project == "" {
		res.Project = filepath.Base(root)
	}
	if res.Revision, err = revision.Detect(ctx, root, stateDir); err != nil {
		return nil, err
	}
	if p := res.Revision.Problem; p != "" {
		res.Warnings = append(res.Warnings, p)
	}
	found, err := res.read(ctx, tree, cfg, registry)
	if err != nil {
		return nil, err
	}
	res.claim(found, now)
	return res, nil
}

// read looks at every file that an extractor wants, manifests first: they name
// the modules.
func (res *Result) read(ctx context.Context, tree *source.Tree, cfg config.Config, registry *extract.Registry) ([]extract.Observation, error) {
	modules := extract.NewModules(res.Project)
	wanted := func(name string) bool {
		probe := source.NewFile(name, nil)
		language := cfg.Project.Language
		return (language == "auto" || string(probe.Language) == language) && (extract.IsManifest(probe) || registry.Wants(probe))
	}
	var names []string
	manifests := make(map[string]*source.File)
	for _, name := range tree.Names() {
		if !wanted(name) {
			continue
		}
		names = append(names, name)
		if extract.IsManifest(source.NewFile(name, nil)) {
			manifests[name] = tree.Read(name)
			if manifests[name] != nil {
				modules.Add(manifests[name])
			}
		}
	}
	var found []extract.Observation
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		f, ok := manifests[name]
		if !ok {
			f = tree.Read(name)
		}
		if f == nil {
			continue
		}
		res.Files++
		got, warnings := registry.Extract(f, modules)
		found = append(found, got...)
		res.Warnings = append(res.Warnings, warnings...)
	}
	extract.Sort(found)
	return found, nil
}

// claim makes the claims. Two observations of one place that say the same are
// one claim.
func (res *Result) claim(found []extract.Observation, now time.Time) {
	timestamp := res.Revision.Timestamp(now)
	seen := make(map[record.Hash]bool, len(found))
	for i := range found {
		o := &found[i]
		c := record.Content{
			Subject: o.Subject(), Predicate: o.Predicate, Object: o.Object, Confidence: o.Confidence,
			SourceClass: record.Observational, SourceMetadata: res.metadata(o), Timestamp: timestamp,
		}
		if err := c.Validate(); err != nil {
			res.Warnings = append(res.Warnings, fmt.Sprintf("%s:%d: %s makes no claim that a server would take: %v", o.File, o.Line, o.Extractor, err))
			continue
		}
		id := c.ID()
		if !seen[id] {
			seen[id] = true
			res.Findings = append(res.Findings, Finding{Observation: *o, Content: c, ID: id})
		}
	}
}

func (res *Result) metadata(o *extract.Observation) map[string]string {
	m := map[string]string{"extractor": o.Extractor, "file": o.File}
	if o.Line > 0 {
		m["line"] = strconv.Itoa(o.Line)
	}
	if o.Test {
		m["test"] = "true"
	}
	switch res.Revision.Kind {
	case "git":
		m["commit"] = res.Revision.ID
	case "module":
		m["module_version"] = res.Revision.ID
	}
	if res.Revision.Dirty {
		m["dirty"] = "true"
	}
	for k, v := range o.Detail {
		m[k] = v
	}
	return m
}
