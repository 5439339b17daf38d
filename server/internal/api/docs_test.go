package api

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/server/internal/cluster"
)

var (
	codeRow     = regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (\\d{3}) \\| (.+) \\|$")
	codeSection = regexp.MustCompile("(?m)^### `(\\w+)`$")
	guideParts  = regexp.MustCompile(`(?ms)^- \*\*Means:\*\* \S.*^- \*\*Caller:\*\* \S.*^- \*\*Operator:\*\* \S`)
)

// docs/errors.md gives the remedy for exactly the existing codes: a section for
// each code with status 503, a row for each other code.
func TestTheErrorsPageKnowsEveryCode(t *testing.T) {
	raw, err := os.ReadFile("../../../docs/errors.md")
	require.NoError(t, err)
	page := string(raw)
	documented := map[string]int{}
	for _, row := range codeRow.FindAllStringSubmatch(page, -1) {
		require.NotContains(t, documented, row[1], "is documented twice")
		documented[row[1]], err = strconv.Atoi(row[2])
		require.NoError(t, err)
		require.NotEmpty(t, strings.TrimSpace(row[3]), row[1])
	}
	sections := codeSection.FindAllStringSubmatchIndex(page, -1)
	for i, s := range sections {
		code, end := page[s[2]:s[3]], len(page)
		if i+1 < len(sections) {
			end = sections[i+1][0]
		}
		require.NotContains(t, documented, code, "is documented twice")
		documented[code] = 503
		require.Regexp(t, guideParts, page[s[1]:end], "%s: give the meaning and the steps of caller and operator", code)
	}
	for code, info := range codeTable {
		require.Contains(t, documented, code, "docs/errors.md lacks the remedy; 503 needs a section, other codes a row")
		require.Equal(t, info.status, documented[code], code)
	}
	require.Len(t, documented, len(codeTable), "documented: %v", slices.Sorted(maps.Keys(documented)))
}

var reasonRow = regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (yes|no|both) \\| (.+) \\| (.+) \\|$")

// docs/api.md gives the meaning and the remedy of each reason of the health
// summary, and names no others.
func TestTheHealthTableKnowsEveryReason(t *testing.T) {
	page, err := os.ReadFile("../../../docs/api.md")
	require.NoError(t, err)
	var documented []string
	for _, row := range reasonRow.FindAllStringSubmatch(string(page), -1) {
		documented = append(documented, row[1])
	}
	require.ElementsMatch(t, cluster.Reasons(), documented)
}

// docs/failed-writes.md leads from a code to a metric and a file: all of them exist, and
// no code with which a write can fail is left out.
func TestThePageOfFailedWritesNamesWhatExists(t *testing.T) {
	page, err := os.ReadFile("../../../docs/failed-writes.md")
	require.NoError(t, err)
	metrics, err := os.ReadFile("../../../docs/metrics.md")
	require.NoError(t, err)
	for _, name := range regexp.MustCompile(`\bstemedb_\w+`).FindAllString(string(page), -1) {
		require.Contains(t, string(metrics), "| `"+name+"` |")
	}
	var named []string
	rows := regexp.MustCompile("(?m)^\\| [^|]+ \\| ([^|]+) \\| [^|]+ \\| (`[^|]+\\.go`) \\|$").FindAllStringSubmatch(string(page), -1)
	require.Greater(t, len(rows), 10)
	quoted := regexp.MustCompile("`([^`]+)`")
	for _, row := range rows {
		for _, code := range quoted.FindAllStringSubmatch(row[1], -1) {
			require.Contains(t, codeTable, code[1])
			named = append(named, code[1])
		}
		for _, file := range quoted.FindAllStringSubmatch(row[2], -1) {
			require.FileExists(t, "../"+file[1])
		}
	}
	require.Subset(t, named, cluster.WriteCodes())
}
