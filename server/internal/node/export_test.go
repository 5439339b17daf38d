package node

import "github.com/prometheus/client_golang/prometheus"

// Registry is the source of GET /metrics.
func (n *Node) Registry() *prometheus.Registry { return n.registry }
