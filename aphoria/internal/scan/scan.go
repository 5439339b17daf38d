// Package scan turns a directory into observations and claims. It promises that
// the same code at the same revision gives the same claims, byte for byte, and
// that an observation counts even if no claim can hold it.
package scan

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/stemedb/stemedb/aphoria/internal/config"
	"github.com/stemedb/stemedb/aphoria/internal/extract"
	"github.com/stemedb/stemedb/aphoria/internal/revision"
	"github.com/stemedb/stemedb/aphoria/internal/source"
	"github.com/stemedb/stemedb/record"
)

// Finding is an observation with its claim.
type Finding struct {
	extract.Observation
	Content record.Content
	ID      record.Hash
	// NotKept says why no server would accept the claim; nil: it can be kept.
	NotKept error
}

// Result is the result of a scan.
type Result struct {
	Root     string
	Dir      string // the scanned directory: the root or one below it
	Project  string
	Revision revision.Revision
	Findings []Finding
	Files    int                 // that were read
	Passed   map[string][]string // files that were not, by reason
	Unread   Unread
	Warnings []string
}

// Unread counts the paths that a scan did not try to read.
type Unread struct {
	OtherKinds    int // no extractor reads such files
	OtherLanguage int // project.language excludes them
	Excluded      int // by .aphoriaignore, scan.exclude or the defaults
	IgnoredByGit  int // counted only if no file was read
}

// Count is the number of findings with the verdict, whether or not they make
// claims.
func (r *Result) Count(v extract.Verdict) int {
	n := 0
	for i := range r.Findings {
		if r.Findings[i].Verdict == v {
			n++
		}
	}
	return n
}

// NotKept is the number of findings that make no claim.
func (r *Result) NotKept() int {
	n := 0
	for i := range r.Findings {
		if r.Findings[i].NotKept != nil {
			n++
		}
	}
	return n
}

// Run scans a place. now is the time of claims without a revision's time.
func Run(ctx context.Context, at Place, stateDir string, cfg config.Config, registry *extract.Registry, now time.Time) (*Result, error) {
	tree, err := source.Open(ctx, at.Root, source.Options{
		Under:   at.under(),
		Exclude: cfg.Scan.Exclude, IncludeTestdata: cfg.Scan.IncludeTestdata, MaxFileBytes: cfg.Scan.MaxFileBytes,
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = tree.Close() }() // only read

	res := &Result{Root: at.Root, Dir: at.Dir, Project: cfg.Project.Name, Passed: tree.Passed}
	if res.Project == "" {
		res.Project = filepath.Base(at.Root)
	}
	if res.Revision, err = revision.Detect(ctx, at.Dir, stateDir); err != nil {
		return nil, err
	}
	if p := res.Revision.Problem; p != "" {
		res.Warnings = append(res.Warnings, p)
	}
	found, err := res.read(ctx, tree, at, cfg, registry)
	if err != nil {
		return nil, err
	}
	res.Unread.Excluded = tree.Excluded
	if res.Files == 0 {
		if res.Unread.IgnoredByGit, err = tree.IgnoredByGit(ctx); err != nil {
			return nil, err
		}
	}
	res.Warnings = append(res.Warnings, tree.Warnings()...)
	return res, res.claim(ctx, found, now)
}

// read reads every file that an extractor wants, manifests first, because they
// name the modules.
func (res *Result) read(ctx context.Context, tree *source.Tree, at Place, cfg config.Config, registry *extract.Registry) ([]extract.Observation, error) {
	modules := extract.NewModules(res.Project)
	for dir := at.under(); dir != "."; {
		dir = path.Dir(dir)
		for _, name := range extract.Manifests() {
			if f := tree.ReadIfThere(path.Join(dir, name)); f != nil {
				modules.Add(f)
			}
		}
	}
	wanted := func(name string) bool {
		probe := source.NewFile(name, nil)
		language := cfg.Project.Language
		switch {
		case !extract.IsManifest(probe) && !registry.Wants(probe):
			res.Unread.OtherKinds++
		case language != "auto" && string(probe.Language) != language:
			res.Unread.OtherLanguage++
		default:
			return true
		}
		return false
	}
	var names []string
	manifests := make(map[string]*source.File)
	for _, name := range tree.Names() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
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
		f, ok := manifests[name]
		if !ok {
			f = tree.Read(name)
		}
		if f == nil {
			continue
		}
		res.Files++
		got, warnings := registry.Extract(ctx, f, modules)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		found = append(found, got...)
		res.Warnings = append(res.Warnings, warnings...)
	}
	extract.Sort(found)
	return found, nil
}

// claim makes the claims. Two equal observations of one place are one claim.
func (res *Result) claim(ctx context.Context, found []extract.Observation, now time.Time) error {
	timestamp := res.Revision.Timestamp(now)
	seen := make(map[record.Hash]bool, len(found))
	for i := range found {
		if err := ctx.Err(); err != nil {
			return err
		}
		o := &found[i]
		c := record.Content{
			Subject: o.Subject(), Predicate: o.Predicate, Object: o.Object, Confidence: o.Confidence,
			SourceClass: record.Observational, SourceMetadata: res.metadata(o), Timestamp: timestamp,
		}
		if err := c.Validate(); err != nil {
			// The verdict does not depend on the claim.
			res.Findings = append(res.Findings, Finding{Observation: *o, NotKept: err})
			continue
		}
		id := c.ID()
		if !seen[id] {
			seen[id] = true
			res.Findings = append(res.Findings, Finding{Observation: *o, Content: c, ID: id})
		}
	}
	return nil
}

func (res *Result) metadata(o *extract.Observation) map[string]string {
	m := map[string]string{"extractor": o.Extractor, "file": UTF8(o.File)}
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
		m[k] = UTF8(v)
	}
	return m
}

// UTF8 writes invalid bytes as \xff: a claim holds valid UTF-8 only.
func UTF8(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, `\x%02x`, s[0])
		} else {
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}
