package lens

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/record"
)

const day = 24 * 60 * 60

// TestDocumentedNumbers computes every answer in docs/lenses.md.
func TestDocumentedNumbers(t *testing.T) {
	page, err := os.ReadFile("../../../docs/lenses.md")
	require.NoError(t, err)
	_, worked, ok := strings.Cut(string(page), "## Worked numbers")
	require.True(t, ok)
	answers := 0
	for _, section := range strings.Split(worked, "\n### ")[1:] {
		name, body, _ := strings.Cut(section, "\n")
		t.Run(name, func(t *testing.T) {
			tables := readTables(body)
			require.Len(t, tables, 2)
			claims := readClaims(t, tables[0])
			for _, row := range tables[1] {
				checkAnswer(t, claims, row)
				answers++
			}
		})
	}
	require.GreaterOrEqual(t, answers, 25, "the page's tables were not found")
}

type row map[string]string

// readTables reads Markdown tables as rows by the names in their heads.
func readTables(text string) (tables [][]row) {
	var head []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			head = nil
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case head == nil:
			head = cells
			tables = append(tables, nil)
		case strings.HasPrefix(cells[0], "---"):
		default:
			r := row{}
			for i, name := range head {
				if i < len(cells) {
					r[name] = cells[i]
				}
			}
			tables[len(tables)-1] = append(tables[len(tables)-1], r)
		}
	}
	return tables
}

// named is a set of claims, newest first, with the names that the page uses.
type named struct {
	claims []*Claim
	names  map[record.Hash]string
}

func readClaims(t *testing.T, rows []row) named {
	t.Helper()
	n := named{names: map[record.Hash]string{}}
	for _, r := range rows {
		id, err := record.ParseHash(r["id"] + strings.Repeat("0", 64-len(r["id"])))
		require.NoError(t, err)
		class, err := record.ParseSourceClass(r["class"])
		require.NoError(t, err)
		c := &Claim{ID: id, Class: class, Timestamp: days(t, r["day"]), Confidence: number(t, r["confidence"])}
		copy(c.Value[:], r["value"])
		for _, a := range strings.Fields(r["agents"]) {
			c.Agents = append(c.Agents, agent(a))
		}
		for i, v := range strings.Fields(r["votes"]) {
			who, rest, _ := strings.Cut(v, ":")
			weight, when, _ := strings.Cut(rest, "@")
			c.Votes = append(c.Votes, Vote{Agent: agent(who), Weight: number(t, weight), Timestamp: days(t, when), ID: record.Hash{byte(i)}})
		}
		n.claims = append(n.claims, c)
		n.names[id] = r["claim"]
	}
	slices.SortFunc(n.claims, func(a, b *Claim) int {
		if a.Newer(b) {
			return -1
		}
		return 1
	})
	return n
}

func checkAnswer(t *testing.T, n named, r row) {
	t.Helper()
	p := Params{Now: 1000 * day}
	if r["lens"] == "skeptic" {
		d, err := Skeptic(slices.Values(n.claims), p)
		require.NoError(t, err)
		require.Equal(t, r["winner"], string(d.Status), d.Why)
		require.Equal(t, r["score"], show(d.Score), "skeptic")
		return
	}
	l, ok := Get[*Claim](r["lens"])
	require.True(t, ok, r["lens"])
	a, err := l(slices.Values(n.claims), p)
	require.NoError(t, err)
	winner, second := "", ""
	if a.Winner != nil {
		winner = n.names[a.Winner.ID]
	}
	if a.Why.RunnerUp != nil {
		second = n.names[a.Why.RunnerUp.ID]
	}
	got := fmt.Sprintf("%s: %q score %s, then %q, tie %q", r["lens"], winner, show(a.Why.Score), second, a.Why.TieBreak)
	want := fmt.Sprintf("%s: %q score %s, then %q, tie %q", r["lens"], r["winner"], r["score"], r["runner-up"], r["tie"])
	require.Equal(t, want, got)
	require.NotEmpty(t, a.Why.Rule)
	require.NotEmpty(t, a.Why.Because)
}

func show(f float64) string { return strconv.FormatFloat(round9(f), 'f', -1, 64) }

func agent(name string) record.AgentID { return record.AgentID{name[0]} }

func number(t *testing.T, s string) float64 {
	t.Helper()
	f, err := strconv.ParseFloat(s, 64)
	require.NoError(t, err)
	return f
}

func days(t *testing.T, s string) uint64 {
	t.Helper()
	return uint64(number(t, s) * day)
}
