package control_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A newcomer has the table long before it holds the records. If it goes away then,
// it must not have been one of those that the table's majority is made of.
func TestNewcomerThatGoesAwayTakesNoMajorityWithIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.close()
		w.start()
		w.settled(3)
		w.everywhere(100)
		w.add("d").start()
		w.eventually(20*time.Second, func() bool {
			s := w.node["d"].control.State()
			return s.Change != nil && s.Change.Subject == w.node["d"].id()
		}, "the newcomer has the table")
		time.Sleep(time.Minute) // nobody pulls any log, so the join stays open
		require.NotNil(t, w.node["a"].control.State().Change)
		w.node["d"].kill()
		w.node["c"].kill()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_, _, err := w.running().control.CreateKey(ctx, key("k"))
		require.NoError(t, err, "two of the three voters are left")
	})
}
