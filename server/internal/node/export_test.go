package node

import "github.com/prometheus/client_golang/prometheus"

// Registry holds what GET /metrics shows.
func (n *Node) Registry() *prometheus.Registry { return n.registry }
