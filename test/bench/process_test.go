package main

import (
	"syscall"
	"testing"
	"time"
)

// PostgreSQL's own process only accepts connections; its children do the work.
func TestProcessorTimeCountsTheChildrenOfAProcess(t *testing.T) {
	p, err := start("shell", t.TempDir(), nil, "/bin/sh", "-c", "(while :; do :; done) & trap 'kill $!; exit' INT; wait")
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop(syscall.SIGINT)
	for began := time.Now(); p.cpu() < 100; time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			t.Fatalf("a child that computes has used %v ms after 20 s", p.cpu())
		}
	}
}
