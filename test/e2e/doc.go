// Package e2e holds the gate tests: a release installed by Helm on a real
// three-node Kubernetes cluster, real clients inside it, and faults during
// their work.
//
// They run on the cluster that STEMEDB_E2E_KUBECONFIG names and on no other.
// `make test` and `make gate` bring that cluster up and set the variables;
// without them the tests are skipped with a visible message. TestGate1 measures
// and therefore runs alone; the others run in parallel after it.
package e2e
