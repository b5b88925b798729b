// Package e2e holds the end-to-end suite: it drives only the CLI and the gRPC API, against the real daemons, a real
// registry and real root file systems. The tests carry the build tag e2e; `make test-e2e` runs them.
package e2e
