package control

import (
	"bytes"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/clock"
	"github.com/stemedb/stemedb/server/internal/control/controlpb"
)

// For every number of members, every choice of a minority and every direction in
// which its clocks are wrong, the table's time is between the right clocks, and
// they are known to agree.
func TestAMinorityOfClocksNeverMovesTheTable(t *testing.T) {
	const second = int64(time.Second)
	for n := 1; n <= 7; n++ {
		members := make([]string, n)
		for i := range members {
			members[i] = fmt.Sprint(i)
		}
		choices := 1
		for range n {
			choices *= 4 // exact; off by a second; far ahead; far behind
		}
		for choice := range choices {
			c := newClocks(nil, Timings{}.withDefaults())
			wrong, rest := 0, choice
			for _, id := range members {
				ahead := []int64{0, second, 3600 * second, -3600 * second}[rest%4]
				if rest%4 > 1 {
					wrong++
				}
				rest /= 4
				c.reports[id] = report{ahead: ahead}
			}
			judged := c.judge(moment{}, members)
			if n-wrong >= Majority(n) {
				require.True(t, judged.agree, "%d members, %v", n, c.reports)
				require.GreaterOrEqual(t, judged.ahead, int64(0), "%d members, %v", n, c.reports)
				require.LessOrEqual(t, judged.ahead, second, "%d members, %v", n, c.reports)
			}
			near := 0
			for _, r := range c.reports {
				if time.Duration(r.ahead-judged.ahead).Abs() <= c.bound {
					near++
				}
			}
			require.Equal(t, near >= Majority(n), judged.agree)
		}
	}
}

// A report relative to another leader's steady clock is void.
func TestReportsOfAnotherTermAreVoid(t *testing.T) {
	c := newClocks(nil, Timings{}.withDefaults())
	c.take("b", 2, confirmRequest(1, 5))
	require.Empty(t, c.reports)
	c.take("b", 2, confirmRequest(2, 5))
	require.Len(t, c.reports, 1)
	c.take("b", 0, confirmRequest(0, 5))
	require.Len(t, c.reports, 1)
	c.take("c", 3, confirmRequest(3, 5))
	require.NotContains(t, c.reports, "b")
}

// A wrong clock is logged soon, then once a minute, and once more when it is
// correct again; a start without reports is not logged.
func TestClocksApartAreLoggedNowAndThen(t *testing.T) {
	for _, agree := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var out bytes.Buffer
			log := slog.New(slog.NewTextHandler(&out, nil))
			var wall clock.Shifted
			c := newClocks(&wall, Timings{}.withDefaults())
			for d := time.Duration(0); d < 15*time.Minute; d += 2 * time.Second {
				wall.Set(0)
				right := c.look()
				if d < 10*time.Minute && agree {
					wall.Set(time.Hour)
				}
				c.table = tableTime{known: true, agree: agree || d >= 10*time.Minute, ahead: right.ahead(), at: right}
				c.warn(log)
				if d < clockWarnAfter {
					require.Empty(t, out.String())
				}
				time.Sleep(2 * time.Second)
			}
			require.Equal(t, 10, strings.Count(out.String(), "level=WARN"), out.String())
			require.Equal(t, 1, strings.Count(out.String(), "level=INFO"), out.String())
			require.Equal(t, !agree, strings.Contains(out.String(), "no majority"))
		})
	}
}

func confirmRequest(term uint64, ahead int64) *controlpb.ConfirmRequest {
	return &controlpb.ConfirmRequest{ClockTerm: term, ClockAhead: ahead}
}

// The leader stamps every command that brings a time into the table.
func TestEveryCommandWithATimeIsStamped(t *testing.T) {
	stamped := 0
	for kind := range 256 {
		c := newCommand(byte(kind))
		if c == nil {
			continue
		}
		before := times(reflect.ValueOf(c).Elem())
		if len(before) == 0 {
			continue
		}
		s, ok := c.(timed)
		require.True(t, ok, "%T has %v and the leader does not stamp it", c, before)
		require.NoError(t, s.stamp(77, true))
		for field, at := range times(reflect.ValueOf(c).Elem()) {
			require.EqualValues(t, 77, at, "%T.%s", c, field)
		}
		stamped++
	}
	require.Positive(t, stamped)
}

// times finds the fields of a command that hold its time.
func times(v reflect.Value) map[string]int64 {
	found := map[string]int64{}
	for i := range v.NumField() {
		switch name, f := v.Type().Field(i).Name, v.Field(i); {
		case name == "At" || name == "CreatedAt":
			found[name] = f.Int()
		case f.Kind() == reflect.Struct:
			for inner, at := range times(f) {
				found[name+"."+inner] = at
			}
		}
	}
	return found
}
