package sim

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/stemedb/stemedb/record"
	"github.com/stemedb/stemedb/server/internal/lens"
)

const (
	simProject    = "sim"
	subjectPrefix = "code://"
	callLimit     = 10 * time.Second // of one request
)

// projects are the projects that the clients write to; their keys are registered.
var projects = []string{"alpha", "beta"}

// clients write and read while the world is disturbed. Half of them call nodes
// directly, half come through gateways over HTTP with their project's key.
type clients struct {
	w    *world
	h    *history
	stop chan struct{}
	once sync.Once
	wait sync.WaitGroup
}

func (w *world) startClients(seed uint64, h *history) *clients {
	c := &clients{w: w, h: h, stop: make(chan struct{})}
	start := func(i uint64, loop func(*actor)) {
		a := &actor{clients: c, r: rand.New(rand.NewPCG(seed, 100+i)), name: fmt.Sprint("client ", i)}
		a.signer = ed25519.NewKeyFromSeed(append(make([]byte, 31), byte(i+1)))
		if i%2 == 1 {
			a.visitor = w.newVisitor(fmt.Sprint("visitor", i))
		}
		c.wait.Go(func() {
			loop(a)
			if a.visitor != nil {
				a.visitor.leave()
			}
		})
	}
	for i, loop := range []func(*actor){(*actor).write, (*actor).write, (*actor).write, (*actor).read, (*actor).read, (*actor).keep} {
		start(uint64(i), loop)
	}
	return c
}

// end is idempotent: a failing test ends the clients too.
func (c *clients) end() {
	c.once.Do(func() { close(c.stop) })
	c.wait.Wait()
}

// actor is one client.
type actor struct {
	*clients
	r       *rand.Rand
	name    string
	signer  ed25519.PrivateKey
	visitor *visitor // nil: calls nodes directly
	written map[string][]*record.Assertion
}

// pause waits for a fraction of a second; it returns false when the clients have
// ended.
func (a *actor) pause() bool {
	select {
	case <-a.stop:
		return false
	case <-time.After(time.Duration(100+a.r.IntN(1000)) * time.Millisecond):
		return true
	}
}

// someMachine returns a machine with a running node in any condition, or nil if
// it finds none.
func (a *actor) someMachine() *machine {
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	for range 6 {
		if m := a.w.machines[a.r.IntN(len(a.w.machines))]; m.up() && !m.paused {
			return m
		}
	}
	return nil
}

// door returns a random door for a project, or nil when there is none now.
func (a *actor) door(project string) door {
	m := a.someMachine()
	if m == nil {
		return nil
	}
	if a.visitor != nil {
		return a.visitor.gateway(m, a.w.keys[project])
	}
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	if m.node == nil {
		return nil
	}
	return direct{m.node.Cluster()}
}

func (a *actor) write() {
	a.written = map[string][]*record.Assertion{}
	for a.pause() {
		project := projects[a.r.IntN(len(projects))]
		d := a.door(project)
		if d == nil {
			continue
		}
		if len(a.written[project]) > 0 && a.r.IntN(6) == 0 {
			a.vote(d, project)
			continue
		}
		a.assert(d, project)
	}
}

func (a *actor) assert(d door, project string) {
	var batch []*record.Assertion
	var entries []*entry
	for range 1 + a.r.IntN(4) {
		// Some are sent again, or to the other project: a duplicate must be durable
		// too.
		one := a.anew(project)
		if old := a.written[projects[a.r.IntN(len(projects))]]; len(old) > 0 && a.r.IntN(5) == 0 {
			one = old[a.r.IntN(len(old))]
		}
		if slices.Contains(batch, one) {
			continue
		}
		batch, entries = append(batch, one), append(entries, a.h.attempt(project, one))
		a.written[project] = append(a.written[project], one)
	}
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	for i, err := range d.assert(ctx, project, batch) {
		a.h.write(entries[i], known{content: true, agents: map[record.AgentID]bool{batch[i].Signatures[0].Agent: true}}, err)
	}
}

// anew returns a record that has not been written yet; some have a parent.
func (a *actor) anew(project string) *record.Assertion {
	one := &record.Assertion{Content: record.Content{
		Subject: fmt.Sprintf("code://sim/%d", a.r.IntN(20)), Predicate: "version",
		Object: record.Text(fmt.Sprintf("%s %x", a.name, a.r.Uint64())), Confidence: 0.5,
		SourceClass: record.Observational, Timestamp: uint64(time.Now().Unix()),
	}}
	if old := a.written[project]; len(old) > 0 && a.r.IntN(8) == 0 {
		parent := old[a.r.IntN(len(old))]
		id := parent.ID()
		one.Subject, one.ParentHash = parent.Subject, &id
	}
	one.Sign(a.signer)
	return one
}

func (a *actor) vote(d door, project string) {
	on := a.written[project][a.r.IntN(len(a.written[project]))]
	v := &record.Vote{Assertion: on.ID(), Weight: 0.5, Timestamp: uint64(time.Now().Unix())}
	record.SignVote(a.signer, v)
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	err := d.vote(ctx, project, v)
	a.h.write(a.h.attempt(project, on), known{votes: map[record.AgentID]uint64{v.Agent: v.Timestamp}}, err)
}

// read requests records, whole subjects and lists of subjects. A request may be
// refused, but an answer must be complete.
func (a *actor) read() {
	for a.pause() {
		e := a.h.some(a.r)
		if e == nil {
			continue
		}
		d := a.door(e.project)
		if d == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), callLimit)
		inside, direct := d.(direct)
		switch n := a.r.IntN(6); {
		case n == 0:
			a.readSubjects(ctx, d, e.project)
		case n < 3 && direct:
			a.readGroup(ctx, inside, e)
		default:
			want := a.h.expected(e)
			shown, err := d.get(ctx, e.project, e.id)
			a.h.read(a.name, e, want, shown, err)
		}
		cancel()
	}
}

func (a *actor) readSubjects(ctx context.Context, d door, project string) {
	want := a.h.subjects(project)
	shown, err := d.subjects(ctx, project)
	if err != nil {
		if !passes(err) {
			a.h.fail("%s: a listing of subjects failed: %v", a.name, err)
		}
		return
	}
	for _, subject := range want {
		if !slices.Contains(shown, subject) {
			a.h.fail("%s: a listing misses the subject %s", a.name, subject)
		}
	}
}

// readGroup reads the claims of one subject and predicate, and their
// replacements.
func (a *actor) readGroup(ctx context.Context, d direct, of *entry) {
	entries, want := a.h.group(of.project, of.content.Subject, of.content.Predicate)
	claims, err := d.claims(ctx, of.project, of.content.Subject, of.content.Predicate)
	if err != nil {
		a.h.read(a.name, of, known{}, known{}, err)
		return
	}
	for i, e := range entries {
		var shown known
		if c := claims[e.id]; c != nil {
			shown = shownByClaim(c)
		}
		a.h.read(a.name, e, want[i], shown, nil)
		if want[i].content && e.content.ParentHash != nil {
			a.checkReplaced(e, claims)
		}
	}
}

// checkReplaced: a claim that has an acknowledged child is shown as replaced.
func (a *actor) checkReplaced(child *entry, claims map[record.Hash]*lens.Claim) {
	parent := claims[*child.content.ParentHash]
	if parent != nil && parent.Timestamp <= child.content.Timestamp && parent.ReplacedBy == nil {
		a.h.fail("%s: %s is not shown as replaced by %s", a.name, parent.ID, child.id)
	}
}
