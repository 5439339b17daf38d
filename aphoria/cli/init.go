package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/stemedb/stemedb/aphoria/agent"
	"github.com/stemedb/stemedb/aphoria/config"
)

// initCommand makes what a project needs and leaves alone what is there.
func (a *app) initCommand() *cobra.Command {
	var name, language, url string
	cmd := &cobra.Command{
		Use:   "init [PATH]",
		Short: "Make .aphoria with a configuration and an agent key; what is there stays",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, err := directory(args)
			if err != nil {
				return err
			}
			return a.init(dir, name, language, url)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "project `NAME` (default: the directory's name)")
	cmd.Flags().StringVar(&language, "language", "auto", "restrict scans to one `LANGUAGE`")
	cmd.Flags().StringVar(&url, "url", "", "`URL` of the StemeDB server")
	return cmd
}

func (a *app) init(dir, name, language, url string) error {
	if name == "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return fmt.Errorf("name the project: %w", err)
		}
		name = filepath.Base(abs)
	}
	file, state := a.configFile, a.stateDir
	if file == "" {
		file = filepath.Join(dir, config.Dir, config.File)
	}
	if state == "" {
		state = filepath.Dir(file)
	}
	text := config.Template(name, language, url)
	if _, err := config.Parse(text); err != nil {
		return err // a flag's value is wrong
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
	if _, err := config.Load(file); err != nil {
		return err // it was there before, and is wrong
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
	_, err = fmt.Fprintf(a.Stdout, "%s %s\nagent id %s\n", verb, filepath.Join(state, agent.KeyFile), agent.ID(key))
	return err
}

// create writes a file that is not there yet.
func (a *app) create(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		_, err = fmt.Fprintf(a.Stdout, "kept %s\n", file)
		return err
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
	_, err = fmt.Fprintf(a.Stdout, "made %s\n", file)
	return err
}
