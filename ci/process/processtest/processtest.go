// Package processtest has a Runner for tests: it records every command and answers
// from a script instead of running anything.
package processtest

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/stemedb/stemedb/ci/process"
)

// Recorder is a process.Runner. The zero value answers every command with success
// and no output.
type Recorder struct {
	mu       sync.Mutex
	commands []process.Command
	answers  []answer
}

type answer struct {
	prefix string
	stdout string
	err    error
}

// On makes every command whose text begins with prefix answer stdout; the
// longest matching prefix wins.
func (r *Recorder) On(prefix, stdout string) *Recorder {
	r.answers = append(r.answers, answer{prefix: prefix, stdout: stdout})
	return r
}

// Fail makes every command whose text begins with prefix fail with message.
func (r *Recorder) Fail(prefix, message string) *Recorder {
	r.answers = append(r.answers, answer{prefix: prefix, err: errors.New(message)})
	return r
}

// Run implements process.Runner.
func (r *Recorder) Run(_ context.Context, c process.Command) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.commands = append(r.commands, c)
	best := answer{}
	found := -1
	for _, a := range r.answers {
		if strings.HasPrefix(c.String(), a.prefix) && len(a.prefix) > found {
			best, found = a, len(a.prefix)
		}
	}
	if best.err != nil {
		return "", &process.Error{Command: c, Stderr: best.err.Error(), Err: best.err}
	}
	return best.stdout, nil
}

// Commands returns the executed commands, in order, one line each.
func (r *Recorder) Commands() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := make([]string, len(r.commands))
	for i, c := range r.commands {
		lines[i] = c.String()
	}
	return lines
}

// Inputs returns the standard inputs of the commands whose text begins with prefix.
func (r *Recorder) Inputs(prefix string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var inputs []string
	for _, c := range r.commands {
		if strings.HasPrefix(c.String(), prefix) {
			inputs = append(inputs, string(c.In))
		}
	}
	return inputs
}
