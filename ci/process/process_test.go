package process

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCommandReadsAsTyped(t *testing.T) {
	require.Equal(t, `ip -n x 'a b' '' 'it'\''s'`, Cmd("ip", "-n", "x", "a b", "", "it's").String())
}

func TestExec(t *testing.T) {
	var tee strings.Builder
	out, err := Exec{}.Run(t.Context(), Command{Name: "sh", Args: []string{"-c", `cat; echo "$WHO"`}, Env: []string{"WHO=me"}, In: []byte("in "), Tee: &tee})
	require.NoError(t, err)
	require.Equal(t, "in me\n", out)
	require.Equal(t, out, tee.String())
}

func TestErrorCarriesWhatWasSaid(t *testing.T) {
	_, err := Exec{}.Run(t.Context(), Cmd("sh", "-c", "echo why >&2; exit 3"))
	require.ErrorContains(t, err, "exit status 3\nwhy")
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "sh", e.Command.Name)

	_, err = Exec{}.Run(t.Context(), Cmd("a-program-that-is-not-there"))
	require.True(t, NotFound(err))

	reason := errors.New("the reader left")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(reason)
	_, err = Exec{}.Run(ctx, Cmd("sleep", "60"))
	require.ErrorIs(t, err, reason, "not: signal killed")
}
