// Package extract finds observations in source files. An extractor reads one
// file at a time and uses no network, no clock and no other extractor, so that
// the same files always give the same observations.
package extract

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/stemedb/stemedb/aphoria/internal/source"
	"github.com/stemedb/stemedb/record"
)

// Verdict is the meaning of an observation for the user of the scan.
type Verdict string

// The verdicts, in ascending order.
const (
	Pass  Verdict = "PASS"  // a fact
	Flag  Verdict = "FLAG"  // needs a look
	Block Verdict = "BLOCK" // --exit-code fails on it
)

// Observation is one fact seen in one place.
type Observation struct {
	Extractor  string
	Language   source.Language
	Module     string // the module's name from its manifest
	Aspect     string // the path below the module, such as tls/cert_verification
	Predicate  string
	Object     record.Object
	Confidence float64
	File       string
	Line       int
	Test       bool              // seen in test code
	Detail     map[string]string // more for source_metadata
	Verdict    Verdict
	Message    string // for people; "" for plain facts
}

// Subject is the path that the claim is about.
func (o *Observation) Subject() string {
	return "code://" + string(o.Language) + "/" + o.Module + "/" + o.Aspect
}

// Extractor finds observations of one kind.
type Extractor interface {
	// Name is part of the claim's metadata.
	Name() string
	// Wants reports, by name alone, whether the file is worth reading.
	Wants(f *source.File) bool
	// Extract scans a wanted file in time linear in its length. An error concerns
	// this file only. Extract ends when ctx ends.
	Extract(ctx context.Context, f *source.File, m *Modules) ([]Observation, error)
}

// Registry is a set of extractors. It is immutable.
type Registry struct {
	extractors []Extractor
}

// NewRegistry refuses two extractors with the same name.
func NewRegistry(extractors ...Extractor) (*Registry, error) {
	seen := make(map[string]bool)
	for _, e := range extractors {
		if seen[e.Name()] {
			return nil, fmt.Errorf("there are two extractors with the name %s", e.Name())
		}
		seen[e.Name()] = true
	}
	return &Registry{extractors}, nil
}

// Default is the registry for scans.
func Default() (*Registry, error) {
	tls, err := TLSVerify()
	if err != nil {
		return nil, err
	}
	return NewRegistry(DepVersions(), tls)
}

// Names are the extractors' names, in their order.
func (r *Registry) Names() []string {
	var names []string
	for _, e := range r.extractors {
		names = append(names, e.Name())
	}
	return names
}

// Wants reports whether any extractor wants the file.
func (r *Registry) Wants(f *source.File) bool {
	return slices.ContainsFunc(r.extractors, func(e Extractor) bool { return e.Wants(f) })
}

// Extract runs every extractor that wants the file. Warnings are files that an
// extractor could not read; its observations until then count.
func (r *Registry) Extract(ctx context.Context, f *source.File, m *Modules) (found []Observation, warnings []string) {
	for _, e := range r.extractors {
		if !e.Wants(f) {
			continue
		}
		got, err := e.Extract(ctx, f, m)
		if err != nil {
			warnings = append(warnings, fmt.Sprintf("%s: %s: %v", f.Path, e.Name(), err))
		}
		for _, o := range got {
			o.Extractor, o.File, o.Test = e.Name(), f.Path, f.IsTest()
			found = append(found, o)
		}
	}
	return found, warnings
}

// Sort puts observations into the order of files, lines and subjects.
func Sort(found []Observation) {
	slices.SortFunc(found, func(a, b Observation) int {
		return cmp.Or(
			strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), strings.Compare(a.Extractor, b.Extractor),
			strings.Compare(a.Aspect, b.Aspect), strings.Compare(a.Predicate, b.Predicate), strings.Compare(a.Object.String(), b.Object.String()),
		)
	})
}
