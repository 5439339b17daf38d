package node

import (
	"errors"
	"log/slog"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stemedb/stemedb/server/internal/config"
	"github.com/stemedb/stemedb/server/internal/logs"
)

// acceptErrors counts and logs failed accepts of the node's listeners.
// Otherwise they would be invisible: callers only see that no node answers.
type acceptErrors struct {
	names map[string]string // of listeners, by address
	count *prometheus.CounterVec
	log   *logs.Seldom
}

const acceptErrorsEvery = 10 * time.Second

func newAcceptErrors(cfg *config.Config, log *slog.Logger, registerer prometheus.Registerer) *acceptErrors {
	a := &acceptErrors{
		names: map[string]string{cfg.BindAddr: "api", cfg.GatewayAddr: "gateway", cfg.ReplicationAddr: "peers", cfg.GossipAddr: "gossip"},
		count: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stemedb_accept_errors_total",
			Help: "Connections that a listener of this node could not accept, mostly because the process had no file descriptors left.",
		}, []string{"listener"}),
		log: logs.NewSeldom(log, acceptErrorsEvery),
	}
	if cfg.DebugAddr != "" {
		a.names[cfg.DebugAddr] = "debug"
	}
	for _, name := range a.names {
		a.count.WithLabelValues(name)
	}
	registerer.MustRegister(a.count)
	return a
}

func (a *acceptErrors) failed(addr string, err error) {
	name := a.names[addr]
	a.count.WithLabelValues(name).Inc()
	message := "a listener cannot accept connections"
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		message = "out of file descriptors: connections wait until others are closed; raise the limit of open files (process_max_fds) or find out who keeps so many connections open"
	}
	a.log.Log(slog.LevelError, name, message, "listener", name, "address", addr, "error", err)
}
