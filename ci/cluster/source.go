package cluster

import (
	"fmt"
	"net/netip"

	"github.com/stemedb/stemedb/ci/cluster/source"
	"github.com/stemedb/stemedb/ci/tools"
)

// newSource returns the provider that builds Kubernetes from its Go modules.
func newSource(o Options) (Provider, error) {
	c := source.Default(o.Dir)
	for _, r := range []struct {
		flag, text string
		into       *netip.Prefix
	}{
		{"--node-range", o.NodeRange, &c.NodeRange},
		{"--pod-range", o.PodRange, &c.PodRange},
		{"--service-range", o.ServiceRange, &c.ServiceRange},
	} {
		if r.text == "" {
			continue
		}
		p, err := netip.ParsePrefix(r.text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.flag, err)
		}
		*r.into = p
	}
	if err := c.Check(); err != nil {
		return nil, err
	}
	return source.New(c, o.Runner, o.Reporter, o.Tools, tools.ClusterTools()), nil
}
