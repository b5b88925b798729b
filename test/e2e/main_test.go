//go:build e2e

// Package e2e drives the CLI and the gRPC API against the real daemons, a real registry and real root file systems.
package e2e

import (
	"testing"

	"berth/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
