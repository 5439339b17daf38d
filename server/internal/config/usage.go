package config

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// Usage describes every setting, grouped, one line each: flag, variable,
// meaning and default.
func Usage() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	group := ""
	for _, s := range table() {
		if s.group != group {
			group = s.group
			fmt.Fprintf(w, "\n%s:\n", group)
		}
		flag := "--" + s.flag() + " " + s.value
		if s.secret {
			flag = "--" + s.fileFlag() + " file"
		}
		env := s.env()
		if s.file {
			env += "[_FILE]"
		}
		help := s.help
		if s.preset != "" {
			help += fmt.Sprintf(" (default %s)", s.preset)
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", flag, env, help)
	}
	_ = w.Flush() // a strings.Builder does not fail
	return b.String()
}
