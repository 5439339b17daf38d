package node

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Shutdown ends the node without a failed request: the node turns unready, keeps
// serving for the configured grace (until no caller chooses it any longer),
// finishes requests in progress, flushes its streams, hands over leadership and
// closes the store. When ctx ends, the remaining steps do not wait.
func (n *Node) Shutdown(ctx context.Context) error {
	n.log.Info("shutting down", "grace", n.cfg.ShutdownGrace)
	n.api.Drain()
	select {
	case <-n.booted:
		if n.parts.gossip != nil {
			n.parts.gossip.SetReady(false)
		}
		wait(ctx, n.ctx, n.cfg.ShutdownGrace)
	default:
		// A node that has not started has no callers.
	}
	err := n.end(ctx)
	if errors.Is(err, ErrStopped) {
		err = nil
	}
	n.log.Info("stopped", "error", err)
	return err
}

// Kill ends the node immediately, like SIGKILL, except that its goroutines have
// ended when it returns. It is for tests, whose network and disk are dead by
// then.
func (n *Node) Kill() {
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	_ = n.end(gone)
}

// end stops the parts in the reverse order of their start.
func (n *Node) end(ctx context.Context) error {
	var errs []error
	note := func(step string, err error) {
		if err != nil && ctx.Err() == nil {
			errs = append(errs, fmt.Errorf("%s: %w", step, err))
		}
	}
	bounded := func(do func(context.Context) error) error {
		step, cancel := context.WithTimeout(ctx, n.env.Tuning.StopWithin)
		defer cancel()
		return do(step)
	}
	note("stop serving", bounded(n.serving.Shutdown))
	select {
	case <-n.booted:
	default:
		n.stop(ErrStopped) // a replay in progress is aborted
		<-n.booted
	}
	p := &n.parts
	n.stopReplicate()
	n.replicating.Wait()
	if p.control != nil {
		note("leave the control table", bounded(p.control.Close))
	}
	if p.gossip != nil {
		note("say goodbye", bounded(p.gossip.Close))
	}
	n.stop(ErrStopped)
	if p.grpc != nil {
		p.grpc.Stop()
	}
	if p.port != nil {
		note("close the peer port", p.port.Close())
	}
	if p.peers != nil {
		note("close peer connections", p.peers.Close())
	}
	if p.debug != nil {
		_ = p.debug.Close()
	}
	n.workers.Wait()
	if p.store != nil {
		note("close the store", p.store.Close())
	}
	if cause := context.Cause(n.ctx); !errors.Is(cause, ErrStopped) {
		errs = append(errs, cause)
	}
	return errors.Join(errs...)
}

func wait(a, b context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-a.Done():
	case <-b.Done():
	case <-timer.C:
	}
}
