// Command helm3oldest renders charts with the oldest supported Helm 3, for the tests of the chart: it
// reads a JSON list of requests and writes a JSON list of answers.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
)

// request and answer are those of helms_test.go.
type request struct {
	Chart       string
	Release     string
	Namespace   string
	KubeVersion string
	Upgrade     bool
	Values      map[string]any
}

type answer struct {
	Files map[string]string
	Error string
}

func main() {
	var requests []request
	if err := json.NewDecoder(os.Stdin).Decode(&requests); err != nil {
		fmt.Fprintln(os.Stderr, "read the requests:", err)
		os.Exit(1)
	}
	answers := make([]answer, len(requests))
	for i, r := range requests {
		files, err := render(r)
		answers[i].Files = files
		if err != nil {
			answers[i].Error = err.Error()
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		fmt.Fprintln(os.Stderr, "write the answers:", err)
		os.Exit(1)
	}
}

func render(r request) (map[string]string, error) {
	loaded, err := loader.Load(r.Chart)
	if err != nil {
		return nil, err
	}
	if err := chartutil.ProcessDependencies(loaded, r.Values); err != nil {
		return nil, err
	}
	version, err := chartutil.ParseKubeVersion(r.KubeVersion)
	if err != nil {
		return nil, err
	}
	capabilities := chartutil.DefaultCapabilities.Copy()
	capabilities.KubeVersion = *version
	values, err := chartutil.ToRenderValues(loaded, r.Values, chartutil.ReleaseOptions{
		Name: r.Release, Namespace: r.Namespace, Revision: 1, IsInstall: !r.Upgrade, IsUpgrade: r.Upgrade,
	}, capabilities)
	if err != nil {
		return nil, err
	}
	return engine.Render(loaded, values)
}
