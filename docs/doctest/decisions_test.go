package doctest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const decisions = root + "/docs/decisions"

var (
	decisionRow   = regexp.MustCompile(`(?m)^\| (\d+) \| \[(.*)\]\((\d{4}-[a-z0-9-]+\.md)\) \| (\S+) \| (.*) \|$`)
	decisionTitle = regexp.MustCompile(`^# (\d+)\. (.+)\n`)
	decisionState = regexp.MustCompile(`^(in force(; \d+ replaced .+| until .+)?|replaced by \d+)$`)
)

// The index has one row for each file, with its title, a date and a state.
func TestTheIndexOfDecisionsIsComplete(t *testing.T) {
	index, err := os.ReadFile(filepath.Join(decisions, "README.md"))
	require.NoError(t, err)
	files, err := filepath.Glob(filepath.Join(decisions, "[0-9]*.md"))
	require.NoError(t, err)
	rows := decisionRow.FindAllStringSubmatch(string(index), -1)
	var listed []string
	for i, row := range rows {
		number, title, file, date, state := row[1], row[2], row[3], row[4], row[5]
		listed = append(listed, filepath.Join(decisions, file))
		require.Equal(t, fmt.Sprint(i+1), number, "numbers are consecutive")
		require.True(t, strings.HasPrefix(file, fmt.Sprintf("%04d-", i+1)), "%s is decision %s", file, number)
		text, err := os.ReadFile(filepath.Join(decisions, file))
		require.NoError(t, err)
		heading := decisionTitle.FindStringSubmatch(string(text))
		require.NotNil(t, heading, "%s begins with its number and title", file)
		require.Equal(t, []string{number, title}, heading[1:], file)
		_, err = time.Parse(time.DateOnly, date)
		require.NoError(t, err, "the date of decision %s", number)
		require.Regexp(t, decisionState, state, "the state of decision %s", number)
		for _, other := range regexp.MustCompile(`replaced by (\d+)|; (\d+) replaced`).FindAllStringSubmatch(state, -1) {
			require.True(t, slices.ContainsFunc(rows, func(r []string) bool { return r[1] == other[1]+other[2] }), "decision %s: %q", number, state)
		}
	}
	require.ElementsMatch(t, files, listed)
}

var (
	markdownLink = regexp.MustCompile(`\]\(([^)#]+)(?:#[^)]*)?\)`)
	codeSpan     = regexp.MustCompile("`([^`\n]+)`")
	filePath     = regexp.MustCompile(`^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.*-]+)+$`)
)

// A reader can check a decision: the files and folders that it names are in the
// repository. Package paths below server/internal may leave that prefix out.
func TestDecisionsCiteOnlyTheRepository(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(decisions, "*.md"))
	require.NoError(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, link := range markdownLink.FindAllStringSubmatch(string(text), -1) {
			require.FileExists(t, filepath.Join(decisions, link[1]), "%s links to it", file)
		}
		for _, span := range codeSpan.FindAllStringSubmatch(string(text), -1) {
			name := strings.TrimPrefix(span[1], "github.com/stemedb/stemedb/")
			if !filePath.MatchString(name) {
				continue
			}
			require.True(t, exists(name) || exists("server/internal/"+name), "%s names `%s`, which is not in the repository", file, span[1])
		}
		require.NotRegexp(t, `(?i)\b(the design|the mission|DESIGN\.md)\b`, string(text), "%s cites a document outside of the repository", file)
	}
}

// exists reports whether a file or folder of the repository matches the pattern.
func exists(pattern string) bool {
	found, err := filepath.Glob(filepath.Join(root, pattern))
	return err == nil && len(found) > 0
}
