package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/node"
)

// dyingNode has ended by itself, and shuts down when finish is closed.
type dyingNode struct {
	done, shutting, finish chan struct{}
}

func newDyingNode() *dyingNode {
	n := &dyingNode{done: make(chan struct{}), shutting: make(chan struct{}), finish: make(chan struct{})}
	close(n.done)
	return n
}

func (n *dyingNode) Done() <-chan struct{} { return n.done }
func (n *dyingNode) Err() error            { return fmt.Errorf("the index failed: %w", node.ErrStartAgain) }

func (n *dyingNode) Shutdown(context.Context) error {
	close(n.shutting)
	<-n.finish
	return nil
}

// A node ends by itself, to be restarted. A signal that arrives meanwhile stops
// the process and lets the shutdown finish; only another one ends it immediately.
func TestTheFirstSignalDuringAShutdownLetsItFinish(t *testing.T) {
	for _, second := range []bool{false, true} {
		t.Run(fmt.Sprint("second signal ", second), func(t *testing.T) {
			n, signals := newDyingNode(), make(chan os.Signal)
			type outcome struct {
				asked bool
				err   error
			}
			ended := make(chan outcome, 1)
			go func() {
				asked, err := runNode(t.Context(), n, slog.New(slog.DiscardHandler), signals)
				ended <- outcome{asked, err}
			}()
			<-n.shutting
			signals <- syscall.SIGTERM
			if second {
				signals <- syscall.SIGTERM
			} else {
				close(n.finish)
			}
			got := <-ended
			require.True(t, got.asked, "the node is not started again")
			if second {
				require.ErrorContains(t, got.err, "stopped immediately")
				close(n.finish)
				return
			}
			require.ErrorIs(t, got.err, node.ErrStartAgain)
		})
	}
}

// A node that fails repeatedly within an hour ends its process.
func TestANodeThatKeepsFailingEndsItsProcess(t *testing.T) {
	now := time.Now()
	var starts []time.Time
	for life := range startsAgain {
		var ok bool
		starts, ok = allowed(starts, now)
		require.True(t, ok, "start %d", life)
		now = now.Add(10 * time.Minute)
	}
	starts, ok := allowed(starts, now)
	require.False(t, ok)
	_, ok = allowed(starts, now.Add(time.Hour))
	require.True(t, ok, "an hour later")
}
