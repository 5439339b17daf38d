package control

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/control/controlpb"
)

// Separate tests for the premises of the proof in change.go about marks and about
// the members that become whole.

// movingData is the log of a node that passes to a newer generation while the end
// of the log is read.
type movingData struct {
	Data
	move func()
}

func (d movingData) LogEnd() uint64 {
	end := uint64(10)
	d.move()
	return end
}

func (movingData) Cursors() map[string]uint64 { return nil }
func (movingData) Read() map[string]uint64    { return nil }

func TestLogEndIsNotOlderThanTheGenerationItIsReportedWith(t *testing.T) {
	tb := formed(t, "a", "b", "c")
	before := tb.state.Load().Generation
	c := &Control{table: tb, cfg: Config{Incarnation: "1"}}
	c.cfg.Data = movingData{move: func() { applied(t, tb, &loss{Member: "b/1", Loss: "x"}) }}
	p := c.progress()
	require.Equal(t, before+1, tb.state.Load().Generation, "the test needs a generation that changes meanwhile")
	require.Equal(t, uint64(10), p.LogEnd)
	require.Equal(t, before, p.Generation, "a record behind this end may have been acknowledged at the old generation")
}

// driven runs one step of the leader with an open change.
func driven(s *State, progress map[string]*controlpb.ProgressResponse) *driver {
	c := &Control{log: slog.New(slog.DiscardHandler)}
	c.cfg.Timings.GiveUpAfter, c.cfg.Timings.StuckAfter = time.Hour, time.Hour
	if err := c.drive(s, progress, true); err != nil {
		panic(err)
	}
	return &c.driver
}

func TestOnlyWholeMembersThatKnowOfTheChangeLeaveMarks(t *testing.T) {
	tb := formed(t, "a", "b", "c", "d", "e")
	applied(t, tb, &loss{Member: "e/1", Loss: "x"}, &loss{Member: "d/1", Loss: "y"}, &refill{Member: "e/1"})
	s := tb.state.Load()
	require.NotNil(t, s.Change)
	end := func(generation, end uint64) *controlpb.ProgressResponse {
		return &controlpb.ProgressResponse{Incarnation: "1", Generation: generation, LogEnd: end}
	}
	d := driven(s, map[string]*controlpb.ProgressResponse{
		"a/1": end(s.Change.Generation, 10),
		"b/1": end(s.Change.Generation-1, 20), // reported at an older generation
		"d/1": end(s.Change.Generation, 30),   // not whole
	})
	require.Equal(t, map[string]uint64{"a/1": 10}, d.marks)
	require.Equal(t, map[string]bool{"a/1": true, "d/1": true}, d.knows)
}

func TestMarksOfAnEarlierGenerationAreForgotten(t *testing.T) {
	tb := formed(t, "a", "b", "c")
	applied(t, tb, &loss{Member: "c/1", Loss: "x"}, &refill{Member: "c/1"})
	c := &Control{log: slog.New(slog.DiscardHandler)}
	c.cfg.Timings.GiveUpAfter, c.cfg.Timings.StuckAfter = time.Hour, time.Hour
	first := tb.state.Load()
	tell := func(generation, end uint64) map[string]*controlpb.ProgressResponse {
		return map[string]*controlpb.ProgressResponse{"a/1": {Incarnation: "1", Generation: generation, LogEnd: end}}
	}
	require.NoError(t, c.drive(first, tell(first.Change.Generation, 10), true))
	require.Equal(t, map[string]uint64{"a/1": 10}, c.driver.marks)
	applied(t, tb, &loss{Member: "c/1", Loss: "again"})
	second := tb.state.Load()
	require.NoError(t, c.drive(second, tell(first.Change.Generation, 15), true))
	require.Empty(t, c.driver.marks)
	require.NoError(t, c.drive(second, tell(second.Change.Generation, 20), true))
	require.Equal(t, map[string]uint64{"a/1": 20}, c.driver.marks)
}

// Of five members two lost records. The change that refills one of them may close
// when three logs have been read, and does not affect the other.
func TestChangeOfOneMemberMakesNoOtherOneWhole(t *testing.T) {
	tb := formed(t, "a", "b", "c", "d", "e")
	applied(t, tb, &loss{Member: "d/1", Loss: "x"}, &loss{Member: "e/1", Loss: "y"}, &refill{Member: "d/1"})
	s := tb.state.Load()
	marks := map[string]uint64{}
	knows := map[string]bool{}
	progress := map[string]*controlpb.ProgressResponse{}
	for i, name := range []string{"a", "b", "c", "d", "e"} {
		// All incarnations are "1" in these tests, so one cursor stands for all.
		progress[name+"/1"] = &controlpb.ProgressResponse{Incarnation: "1", Generation: s.Change.Generation, Cursors: map[string]uint64{"1": 10}}
		if i < 3 {
			marks[name+"/1"], knows[name+"/1"] = 10, true
		}
	}
	progress["e/1"].Cursors["1"] = 9 // it lacks records
	whole, waits := closable(s.Change, marks, knows, progress)
	require.Empty(t, waits)
	require.Equal(t, []string{"a/1", "b/1", "c/1", "d/1"}, whole)
	require.NoError(t, applied(t, tb, &closeChange{Change: s.Change.ID, Generation: s.Generation, Whole: whole})[0].err())
	for _, m := range tb.state.Load().Members {
		require.Equal(t, m.Name != "e", m.Whole, m.Name)
	}
}
