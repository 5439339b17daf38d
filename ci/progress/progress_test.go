package progress

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStepSaysWhatHappens(t *testing.T) {
	var out strings.Builder
	r := New(&out)
	require.NoError(t, r.Step(t.Context(), "easy", func(context.Context) error { return nil }))
	require.Regexp(t, `(?s)\[  0:00\] easy \.\.\.\n\[  0:00\] easy: done in `, out.String())
}

func TestStepBeats(t *testing.T) {
	var out strings.Builder
	r := New(&out)
	r.beat = time.Millisecond
	beaten := func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return strings.Contains(out.String(), "slow: still running")
	}
	require.NoError(t, r.Step(t.Context(), "slow", func(context.Context) error {
		require.Eventually(t, beaten, 10*time.Second, time.Millisecond)
		return nil
	}))
}

func TestInnermostStepIsNamed(t *testing.T) {
	cause := errors.New("no space")
	r := New(&strings.Builder{})
	err := r.Step(t.Context(), "outer", func(ctx context.Context) error {
		return r.Step(ctx, "inner", func(context.Context) error { return cause })
	})
	require.ErrorIs(t, err, cause)
	var f *Failure
	require.ErrorAs(t, err, &f)
	require.Equal(t, "inner", f.Step)
}

func TestExplain(t *testing.T) {
	log := filepath.Join(t.TempDir(), "etcd.log")
	require.NoError(t, os.WriteFile(log, []byte(strings.Repeat("old\n", 100)+"the disk is full\n"), 0o600))
	err := WithHint(WithLog(errors.New("etcd has ended"), log), "free %s", "space")
	var out strings.Builder
	Explain(&out, &Failure{Step: "start etcd", Err: err})
	text := out.String()
	require.Contains(t, text, "FAILED at: start etcd\n")
	require.Contains(t, text, "why:  etcd has ended\n")
	require.Contains(t, text, "      the disk is full\n")
	require.Contains(t, text, "do:   free space\n")
	require.Equal(t, 14, strings.Count(text, "old"), "only the log's end")
	require.NoError(t, WithHint(nil, "x"))
	require.NoError(t, WithLog(nil, "x"))
}
