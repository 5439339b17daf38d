// Command localserver replaces the process of ci/run-server after the build: it runs
// one server without keys, with its data in the folder given by the first
// argument, and removes that folder at the end. It passes further arguments to
// the server.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: localserver FOLDER [FLAG...]; FOLDER holds the program stemedb and is removed at the end")
		os.Exit(2)
	}
	// Before anything else, so that a signal at any moment removes the data.
	signals := catchSignals()
	code, err := run(os.Args[1], os.Args[2:], signals)
	if err != nil {
		fmt.Fprintln(os.Stderr, "localserver:", err)
	}
	os.Exit(code)
}

// run returns the exit code.
func run(folder string, flags []string, signals <-chan os.Signal) (code int, err error) {
	defer func() {
		if rmErr := os.RemoveAll(folder); err == nil && rmErr != nil {
			code, err = 1, fmt.Errorf("remove the data: %w", rmErr)
		}
	}()
	first, err := firstPort(os.Getenv("PORT"))
	if err != nil {
		return 2, err
	}
	port := func(n int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(first+n)) }
	program := filepath.Join(folder, "stemedb")
	ready := func() {
		fmt.Printf("StemeDB listens on http://%s (API) and :%d (gateway); data in %s; Ctrl-C stops it and removes the data.\n", port(0), first+1, folder)
		fmt.Printf("  curl -s http://%s/v1/health\n", port(1))
		fmt.Printf("  %s smoke --url http://%s\n", program, port(1))
	}

	server := exec.Command(program, append([]string{ //nolint:noctx // it ends by the signals below
		"serve", "--node-name", "local", "--advertise-addr", "127.0.0.1",
		"--wal-dir", filepath.Join(folder, "wal"), "--db-dir", filepath.Join(folder, "db"),
		"--bind-addr", port(0), "--gateway-addr", port(1), "--replication-addr", port(2), "--gossip-addr", port(3),
		"--auth-enabled=false", "--shutdown-grace", "0s", "--log-format", "text", "--log-level", "warn",
	}, flags...)...)
	server.Env = environment(os.Environ())
	server.Stdout, server.Stderr = os.Stdout, os.Stderr
	byTerminal, err := supervise(server, signals, "http://"+port(1)+"/v1/health", ready)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1), fmt.Errorf("the server ended: %w", err)
	case err != nil:
		return 1, err
	}
	if byTerminal {
		fmt.Println() // the terminal has just written ^C
	}
	fmt.Println("StemeDB has stopped and its data is removed.")
	return 0, nil
}

func firstPort(text string) (int, error) {
	if text == "" {
		return 18180, nil
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 || port > 65532 {
		return 0, fmt.Errorf("PORT=%q is not a number from 1 to 65532: the server takes this port and the next three", text)
	}
	return int(port), nil
}

// environment omits variables of the project's tools and clients, because the
// server rejects unknown settings.
func environment(all []string) (out []string) {
	for _, kv := range all {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "STEMEDB_CACHE", "STEMEDB_STATE", "STEMEDB_CLUSTER_PROVIDER", "STEMEDB_CLUSTER_CONTEXT", "STEMEDB_CLUSTER_IMAGE",
			"STEMEDB_URL", "STEMEDB_API_KEY":
			continue
		}
		if !hasAnyPrefix(name, "STEMEDB_DOCS_", "STEMEDB_E2E_", "STEMEDB_SIM_", "STEMEDB_BENCH_") {
			out = append(out, kv)
		}
	}
	return out
}

func hasAnyPrefix(s string, prefixes ...string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}
