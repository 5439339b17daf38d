package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/stemedb/stemedb/aphoria/internal/agent"
	"github.com/stemedb/stemedb/aphoria/internal/config"
	"github.com/stemedb/stemedb/aphoria/internal/scan"
)

// wishes are the flags of init for the configuration; "" is a flag not given.
type wishes struct {
	name, language, url string
}

// initCommand makes the files that a project needs and keeps existing ones.
func (a *app) initCommand() *cobra.Command {
	var w wishes
	cmd := &cobra.Command{
		Use:   "init [PATH]",
		Short: "Make .aphoria with a configuration and an agent key; existing files stay",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, err := directory(args)
			if err != nil {
				return err
			}
			return a.init(dir, w)
		},
	}
	cmd.Flags().StringVar(&w.name, "name", "", "project `NAME` (default: the directory's name)")
	cmd.Flags().StringVar(&w.language, "language", "", "restrict scans to one `LANGUAGE` (default: auto, which is all)")
	cmd.Flags().StringVar(&w.url, "url", "", "`URL` of the StemeDB server")
	return cmd
}

// check compares the flags with an existing configuration, which init does not
// change.
func (w wishes) check(file string) error {
	c, err := config.Load(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, f := range []struct{ flag, want, setting, has string }{
		{"--name", w.name, "project.name", c.Project.Name},
		{"--language", w.language, "project.language", c.Project.Language},
		{"--url", w.url, "hosted.url", c.Hosted.URL},
	} {
		if f.want != "" && f.want != f.has {
			return fmt.Errorf("%s exists and has %s = %q, which %s does not change; edit that line, or remove the file and run init again",
				file, f.setting, f.has, f.flag)
		}
	}
	return nil
}

func (a *app) init(dir string, w wishes) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("name the project: %w", err)
	}
	file, state := a.configFile, a.stateDir
	if file == "" {
		file = filepath.Join(dir, config.Dir, config.File)
	}
	if state == "" {
		state = filepath.Dir(file)
	}
	text := config.Template(cmp.Or(w.name, scan.UTF8(filepath.Base(abs))), cmp.Or(w.language, "auto"), w.url)
	if _, err := config.Parse(text); err != nil {
		return err // a flag's value is invalid
	}
	if err := w.check(file); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("make the configuration's directory: %w", err)
	}
	if err := os.MkdirAll(state, 0o755); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	if err := a.create(file, text); err != nil {
		return err
	}
	// The key must never be committed, so it is ignored before it exists.
	if err := a.create(filepath.Join(state, ".gitignore"), agent.KeyFile+"\nqueue/\n"); err != nil {
		return err
	}
	return a.createKey(state)
}

func (a *app) createKey(state string) error {
	noEnv := func(string) string { return "" }
	key, err := agent.Load(state, noEnv)
	verb := "kept"
	if errors.Is(err, agent.ErrNoKey) {
		verb = "made"
		key, err = agent.Create(state)
	}
	if err != nil {
		return err
	}
	if err := a.out("%s %s", verb, filepath.Join(state, agent.KeyFile)); err != nil {
		return err
	}
	return a.out("agent id %s", agent.ID(key))
}

// create writes a file that does not exist yet.
func (a *app) create(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return a.out("kept %s", file)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	_, err = f.WriteString(text)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return a.out("made %s", file)
}
