package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A server that still starts has no signal handler: sleep stands for it.
func TestASignalBeforeTheServerIsReadyEndsItWithoutAnError(t *testing.T) {
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		signals := make(chan os.Signal, 1)
		signals <- s
		if _, err := supervise(exec.Command("sleep", "60"), signals, "http://127.0.0.1:1/", func() { t.Error("it was never ready") }); err != nil {
			t.Errorf("%v: %v", s, err)
		}
	}
}

func TestAServerThatFailsIsAnError(t *testing.T) {
	for _, command := range []string{"exit 3", "kill -KILL $$", "kill -TERM $$"} {
		if _, err := supervise(exec.Command("sh", "-c", command), nil, "http://127.0.0.1:1/", func() {}); err == nil {
			t.Error(command)
		}
	}
}

func TestReadyIsReportedOnceHealthAnswers(t *testing.T) {
	var asked atomic.Int32
	health := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer health.Close()
	signals := make(chan os.Signal, 1)
	times := 0
	start := time.Now()
	_, err := supervise(exec.Command("sleep", "60"), signals, health.URL, func() {
		times++
		signals <- os.Interrupt
	})
	if err != nil || times != 1 || asked.Load() != 3 || time.Since(start) > 30*time.Second {
		t.Errorf("%v, %d times, %d requests", err, times, asked.Load())
	}
}
