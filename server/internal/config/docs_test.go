package config

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write docs/settings.md anew instead of comparing it")

const settingsPage = "../../../docs/settings.md"

// docs/settings.md is generated from the table of settings, so it cannot drift.
func TestTheSettingsPageIsTheTables(t *testing.T) {
	page, err := os.ReadFile(settingsPage)
	require.NoError(t, err)
	begin, end := "<!-- Written by `make generate`. -->\n", "<!-- End of the tables. -->"
	before, rest, ok := strings.Cut(string(page), begin)
	require.True(t, ok, "the page has no place for the tables")
	_, after, ok := strings.Cut(rest, end)
	require.True(t, ok, "the page has no end of the tables")
	want := before + begin + settingsTables() + "\n" + end + after
	if *update {
		require.NoError(t, os.WriteFile(settingsPage, []byte(want), 0o644))
		return
	}
	require.Equal(t, want, string(page), "run: make generate")
	for _, name := range clientNames() {
		require.Contains(t, string(page), "`"+name+"`", "a variable of the client commands")
	}
}

// settingsTables returns one table for each group.
func settingsTables() string {
	var b strings.Builder
	group := ""
	for _, s := range table() {
		if s.group != group {
			group = s.group
			fmt.Fprintf(&b, "\n### %s\n\n| variable | flag | value | default | meaning |\n|---|---|---|---|---|\n", group)
		}
		variable, flag := "`"+s.env()+"`", "`--"+s.flag()+"`"
		if s.file {
			variable += ", `" + s.fileEnv() + "`"
			flag += ", `--" + s.fileFlag() + "`"
		}
		if s.secret {
			flag = "`--" + s.fileFlag() + "`"
		}
		preset := ""
		if s.preset != "" {
			preset = "`" + s.preset + "`"
		}
		fmt.Fprintf(&b, "| %s | %s | `%s` | %s | %s |\n", variable, flag, strings.ReplaceAll(s.value, "|", `\|`), preset, strings.ReplaceAll(s.help, "|", `\|`))
	}
	return b.String()
}
