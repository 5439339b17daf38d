// Package progress reports the progress of a long command to a terminal or a
// pipeline's log: one line when a step begins, a heartbeat while it lasts, one
// line when it ends, each with the time since the start.
//
// It also gives failures one format: the step, the cause, the end of the
// relevant log, and the remedy.
package progress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// heartbeat is the longest time without output during a step.
const heartbeat = 20 * time.Second

// Reporter prints steps. It is safe for concurrent use; steps that run side by
// side print whole lines.
type Reporter struct {
	mu    sync.Mutex
	w     io.Writer
	start time.Time
	beat  time.Duration
}

// New returns a Reporter whose clock starts now.
func New(w io.Writer) *Reporter {
	return &Reporter{w: w, start: time.Now(), beat: heartbeat}
}

// Note prints one line.
func (r *Reporter) Note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	elapsed := time.Since(r.start).Round(time.Second)
	// A closed writer must not stop the work that is reported to it.
	_, _ = fmt.Fprintf(r.w, "[%3d:%02d] %s\n", int(elapsed.Minutes()), int(elapsed.Seconds())%60, fmt.Sprintf(format, args...))
}

// Step runs do as a step of that name. Its error comes back as a *Failure that
// names the step, unless an inner step already named itself.
func (r *Reporter) Step(ctx context.Context, name string, do func(context.Context) error) error {
	begin := time.Now()
	r.Note("%s ...", name)

	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(r.beat)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				r.Note("%s: still running, %s so far", name, time.Since(begin).Round(time.Second))
			}
		}
	}()
	err := do(ctx)
	close(stop)
	<-stopped

	took := time.Since(begin).Round(100 * time.Millisecond)
	if err == nil {
		r.Note("%s: done in %s", name, took)
		return nil
	}
	r.Note("%s: FAILED after %s", name, took)
	var named *Failure
	if errors.As(err, &named) {
		return err
	}
	return &Failure{Step: name, Err: err}
}

// Failure is an error that names the step that failed.
type Failure struct {
	Step string
	Err  error
}

// Error is one line: the step and the cause.
func (f *Failure) Error() string { return f.Step + ": " + f.Err.Error() }

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Err }

type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// WithHint adds a remedy to err.
func WithHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hinted{error: err, hint: fmt.Sprintf(format, args...)}
}

type logged struct {
	error
	path string
}

func (l *logged) Unwrap() error { return l.error }

// WithLog adds to err the path of the log that explains it.
func WithLog(err error, path string) error {
	if err == nil {
		return nil
	}
	return &logged{error: err, path: path}
}

// Explain prints err for a user: step, cause, end of the log, remedy.
func Explain(w io.Writer, err error) {
	var b strings.Builder
	step, cause := "", err
	var f *Failure
	if errors.As(err, &f) {
		step, cause = f.Step, f.Err
	}
	b.WriteString("\n")
	if step != "" {
		fmt.Fprintf(&b, "FAILED at: %s\n", step)
	}
	fmt.Fprintf(&b, "why:  %s\n", indent(cause.Error()))
	var l *logged
	if errors.As(err, &l) {
		fmt.Fprintf(&b, "log:  %s\n", l.path)
		if tail := Tail(l.path, 15); tail != "" {
			fmt.Fprintf(&b, "      %s\n", indent(tail))
		}
	}
	var h *hinted
	if errors.As(err, &h) {
		fmt.Fprintf(&b, "do:   %s\n", indent(h.hint))
	}
	_, _ = io.WriteString(w, b.String())
}

func indent(s string) string {
	return strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n      ")
}

// Tail returns the last lines of a file, at most n of them and 16 KiB; nothing
// when it cannot be read.
func Tail(path string, n int) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.Size() > 16<<10 {
		if _, err := f.Seek(-16<<10, io.SeekEnd); err != nil {
			return ""
		}
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
