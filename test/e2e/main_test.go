//go:build e2e

package e2e

import (
	"testing"

	"berth/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
