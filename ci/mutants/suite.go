package mutants

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
)

// Suite runs mutants of one checkout.
type Suite struct {
	Root     string
	Runner   process.Runner
	Reporter *progress.Reporter
	Out      io.Writer // receives the table
}

// limit ends a test that a mutant makes hang.
const limit = 5 * time.Minute

// Check quickly verifies that every patch still applies and names existing
// tests. It changes nothing.
func (s *Suite) Check(ctx context.Context) error {
	all, err := Load(s.Root)
	if err != nil {
		return err
	}
	var wrong []error
	for _, m := range all {
		if err := errors.Join(s.apply(ctx, s.Root, &m, "--check"), s.testsExist(&m)); err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", m.Name, err))
		}
	}
	return progress.WithHint(errors.Join(wrong...), "recreate the patches in %s for the current code; delete a bug that the code can no longer have", Dir)
}

func (s *Suite) apply(ctx context.Context, dir string, m *Mutant, how ...string) error {
	_, err := s.Runner.Run(ctx, process.Command{Name: "git", Args: append([]string{"apply"}, how...), Dir: dir, In: m.patch})
	if err != nil {
		return fmt.Errorf("the patch no longer applies: %w", err)
	}
	return nil
}

func (s *Suite) testsExist(m *Mutant) error {
	files, err := filepath.Glob(filepath.Join(s.Root, m.Package, "*_test.go"))
	if err != nil {
		return err
	}
	var code strings.Builder
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		code.Write(b)
	}
	for _, name := range m.Tests {
		if !regexp.MustCompile(`(?m)^func ` + name + `\(`).MatchString(code.String()) {
			return fmt.Errorf("%s has no test %s", m.Package, name)
		}
	}
	return nil
}

// result is one row of the table.
type result struct {
	m    *Mutant
	took time.Duration
	by   []string // the tests that caught it
	err  error
}

func (r result) verdict() string {
	switch {
	case r.err != nil:
		return "ERROR"
	case len(r.by) > 0:
		return "caught"
	}
	return "MISSED"
}

// Run plants the mutants of these names, or all, one after the other, and prints
// a table. The error lists the ones that were not caught.
func (s *Suite) Run(ctx context.Context, names ...string) error {
	all, err := Load(s.Root, names...)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "stemedb-mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := s.Reporter.Step(ctx, "copy the checkout", func(ctx context.Context) error { return s.copyTo(ctx, dir) }); err != nil {
		return err
	}
	if err := s.Reporter.Step(ctx, "the tests pass without any mutant", func(ctx context.Context) error { return s.sound(ctx, dir, all) }); err != nil {
		return err
	}
	var results []result
	for i := range all {
		r := s.plant(ctx, dir, &all[i])
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.Reporter.Note("%s: %s in %.1f s", r.m.Name, r.verdict(), r.took.Seconds())
		results = append(results, r)
	}
	return s.report(results)
}

// sound runs the tests of all mutants without any patch, each package once.
func (s *Suite) sound(ctx context.Context, dir string, all []Mutant) error {
	type group struct{ pkg, env string }
	var order []group
	tests := map[group][]string{}
	for _, m := range all {
		g := group{m.Package, strings.Join(m.Env, " ")}
		if tests[g] == nil {
			order = append(order, g)
		}
		for _, name := range m.Tests {
			if !slices.Contains(tests[g], name) {
				tests[g] = append(tests[g], name)
			}
		}
	}
	for _, g := range order {
		o, err := s.test(ctx, dir, g.pkg, tests[g], strings.Fields(g.env))
		if err == nil {
			err = o.passed(tests[g])
		}
		if err != nil {
			return fmt.Errorf("%s: %w", g.pkg, err)
		}
	}
	return nil
}

// plant applies a mutant, runs its test and takes the mutant away again.
func (s *Suite) plant(ctx context.Context, dir string, m *Mutant) (r result) {
	r.m = m
	if r.err = s.apply(ctx, dir, m); r.err != nil {
		return r
	}
	defer func() {
		// Also after an interruption: the next mutant needs the original code.
		r.err = errors.Join(r.err, s.apply(context.WithoutCancel(ctx), dir, m, "-R"))
	}()
	began := time.Now()
	o, err := s.test(ctx, dir, m.Package, m.Tests, m.Env)
	r.took = time.Since(began)
	if err != nil {
		r.err = err
		return r
	}
	r.by, r.err = o.caught(m.Tests)
	return r
}

func (s *Suite) test(ctx context.Context, dir, pkg string, tests, env []string) (outcome, error) {
	// -trimpath makes the build cache reusable for the next copy.
	stdout, err := s.Runner.Run(ctx, process.Command{
		Name: "go",
		Args: []string{
			"test", "-json", "-count=1", "-vet=off", "-trimpath", "-timeout", limit.String(),
			"-run", "^(" + strings.Join(tests, "|") + ")$", pkg,
		},
		Dir: dir, Env: append([]string{"GOWORK=off"}, env...),
	})
	if ctx.Err() != nil {
		return outcome{}, context.Cause(ctx)
	}
	o, parseErr := parseOutcome(stdout)
	if parseErr != nil || err != nil && len(o.tests) == 0 && !o.unbuilt && !o.panicked {
		return o, errors.Join(err, parseErr) // go test itself failed
	}
	return o, nil
}

func (s *Suite) report(results []result) error {
	w := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "\nmutant\ttest\tseconds\tverdict")
	var wrong []error
	for _, r := range results {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%.1f\t%s\n", r.m.Name, r.m.where(cmp.Or(strings.Join(r.by, " "), strings.Join(r.m.Tests, "|"))), r.took.Seconds(), r.verdict())
		switch {
		case r.err != nil:
			wrong = append(wrong, fmt.Errorf("%s: %w", r.m.Name, r.err))
		case len(r.by) == 0:
			wrong = append(wrong, fmt.Errorf("%s: MISSED by %s: %s", r.m.Name, r.m.where(strings.Join(r.m.Tests, "|")), r.m.Defect))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(wrong) == 0 {
		return nil
	}
	return progress.WithHint(fmt.Errorf("%d of %d mutants were not caught\n%w", len(wrong), len(results), errors.Join(wrong...)),
		"write a test that fails while the patch is applied (git apply %s/NAME.patch), and name it in the patch", Dir)
}
