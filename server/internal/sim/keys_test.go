package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stemedb/stemedb/client"
	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/keys"
)

// revokedFor is how long a revoked key may work at a node that is cut off from
// the others: as long as that node trusts its last confirmation.
const revokedFor = 30 * time.Second

// registerKeys registers one key for each project, and the clients use them.
func (w *world) registerKeys() {
	w.t.Helper()
	w.keys = map[string]string{}
	for _, project := range projects {
		raw, hash := w.mint()
		if _, _, err := w.machines[0].node.Control().CreateKey(context.Background(), key(hash, project)); err != nil {
			w.t.Fatalf("register the key of %s: %v", project, err)
		}
		w.keys[project] = raw
	}
}

func (w *world) mint() (raw string, hash keys.Hash) {
	raw, err := keys.Generate(keys.Test, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return raw, keys.HashOf(raw)
}

func key(hash keys.Hash, project string) keys.Key {
	return keys.Key{Hash: hash, Project: project, Role: keys.WriteAgent, Enabled: true}
}

// keep mints keys, uses them, revokes them and continues to use them: a key whose
// revocation was confirmed writes nothing after the time limit.
func (a *actor) keep() {
	for a.pause() {
		raw, hash := a.w.mint()
		if !a.change(func(m *machine) error {
			_, _, err := m.node.Control().CreateKey(context.Background(), key(hash, projects[0]))
			return err
		}) {
			continue
		}
		a.use(raw, 0)
		if !a.change(func(m *machine) error {
			_, err := m.node.Control().RevokeKey(context.Background(), hash)
			return err
		}) {
			continue
		}
		a.use(raw, revokedFor)
	}
}

// change makes one change of keys through some node; it returns false when no
// node could.
func (a *actor) change(f func(*machine) error) bool {
	for range 5 {
		if !a.pause() {
			return false
		}
		m := a.someMachine()
		if m == nil {
			continue
		}
		if err := f(m); err == nil {
			return true
		}
	}
	return false
}

// use writes with a key at random gateways: at once, or that long after the key
// stopped working.
func (a *actor) use(raw string, after time.Duration) {
	revoked := after > 0
	select {
	case <-a.stop:
		return
	case <-time.After(after):
	}
	for range 3 {
		if !a.pause() {
			return
		}
		m := a.someMachine()
		if m == nil {
			continue
		}
		one := a.anew(projects[0])
		e := a.h.attempt(projects[0], one)
		ctx, cancel := context.WithTimeout(context.Background(), callLimit)
		_, err := a.visitor.gateway(m, raw).c.Assert(ctx, one)
		cancel()
		var answer *client.Error
		switch {
		case revoked && err == nil:
			a.h.fail("%s writes with a key that was revoked %s before", m.name, after)
		case errors.As(err, &answer) && answer.Status == 401:
			// Correct if it is revoked; otherwise the node does not know the key yet.
		default:
			a.h.write(e, known{content: true, agents: map[record.AgentID]bool{one.Signatures[0].Agent: true}}, err)
		}
	}
}

// checkKeys: in a settled cluster every project's key works at every gateway.
func (w *world) checkKeys(h *history) {
	v := w.newVisitor("inspector")
	defer v.leave()
	for _, m := range w.machines {
		for _, project := range projects {
			ctx, cancel := context.WithTimeout(context.Background(), callLimit)
			id, err := v.gateway(m, w.keys[project]).c.WhoAmI(ctx)
			cancel()
			if err != nil || id.Project != project {
				h.fail("the key of %s does not work at %s: %s", project, m.name, fmt.Sprint(id, err))
			}
		}
	}
}
