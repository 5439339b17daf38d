package mutants

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/stemedb/stemedb/ci/process"
)

// event is one line of go test -json.
type event struct {
	Action, Test, Output, FailedBuild string
}

// outcome is the result of one run of go test.
type outcome struct {
	// tests holds pass, fail or skip for each test that ran, without subtests.
	tests map[string]string
	// unbuilt: the code did not compile. panicked: the process did not exit
	// normally; asserted: an assertion had failed before that.
	unbuilt, panicked, asserted bool
	// said is the output, for error messages.
	said string
}

// panics begin the lines with which a test process ends that no assertion ended:
// time-outs and deadlocks of a synctest bubble are among them.
var panics = []string{"panic: ", "fatal error: ", "SIGQUIT"}

func parseOutcome(stdout string) (outcome, error) {
	o := outcome{tests: map[string]string{}}
	var said strings.Builder
	for d := json.NewDecoder(strings.NewReader(stdout)); ; {
		var e event
		err := d.Decode(&e)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return o, fmt.Errorf("read the output of go test -json: %w", err)
		}
		said.WriteString(e.Output)
		o.unbuilt = o.unbuilt || e.FailedBuild != "" || e.Action == "build-fail"
		o.asserted = o.asserted || strings.Contains(e.Output, "Error Trace:")
		o.panicked = o.panicked || slices.ContainsFunc(panics, func(p string) bool { return strings.HasPrefix(e.Output, p) })
		if e.Test != "" && !strings.Contains(e.Test, "/") && (e.Action == "pass" || e.Action == "fail" || e.Action == "skip") {
			o.tests[e.Test] = e.Action
		}
	}
	o.said = said.String()
	return o, nil
}

// passed returns an error with the reason unless all of the tests ran and passed.
func (o *outcome) passed(tests []string) error {
	if o.unbuilt {
		return fmt.Errorf("the tests do not compile without any mutant:\n%s", process.LastLines(o.said, 12))
	}
	if o.panicked {
		at := strings.Index(o.said, "panic: ")
		return fmt.Errorf("the tests ended in a panic, or were cut off, without any mutant:\n%s", firstLines(o.said[max(at, 0):], 20))
	}
	for _, name := range tests {
		switch o.tests[name] {
		case "pass":
		case "":
			return fmt.Errorf("%s did not run: there is no test of that name", name)
		default:
			return fmt.Errorf("%s does not pass without any mutant (%s):\n%s", name, o.tests[name], process.LastLines(o.said, 20))
		}
	}
	return nil
}

func firstLines(text string, n int) string {
	lines := strings.SplitN(text, "\n", n+1)
	return strings.Join(lines[:min(n, len(lines))], "\n")
}

// caught returns those of the tests in which an assertion failed. An error means
// that the run proves nothing.
func (o *outcome) caught(tests []string) (by []string, err error) {
	for _, name := range tests {
		if o.tests[name] == "fail" {
			by = append(by, name)
		}
	}
	switch {
	case o.unbuilt:
		return nil, fmt.Errorf("the mutant does not compile:\n%s", process.LastLines(o.said, 12))
	case o.panicked && !o.asserted:
		return nil, fmt.Errorf("the test ended in a panic or was cut off, which does not count as a failed assertion:\n%s", process.LastLines(o.said, 20))
	case len(by) == 0 && slices.ContainsFunc(tests, func(name string) bool { return o.tests[name] != "pass" }):
		return nil, fmt.Errorf("not all of the tests ran:\n%s", process.LastLines(o.said, 12))
	}
	return by, nil
}
