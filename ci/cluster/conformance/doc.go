// Package conformance holds the cluster providers k3d and kind to those
// projects' own code: their configuration files are read and validated by it,
// and the commands that the providers run are parsed by it. The package is a
// module of its own because of what those projects require.
package conformance
