// Package workertest builds berth-unpack for the tests of a package, once.
package workertest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"berth/services/imaged/worker"
)

var program string

// built is where a test finds the program that was built for it in a process
// that started it.
const built = "BERTH_TEST_UNPACK"

// Main is for TestMain: it builds the program, runs the tests, and gives what to
// exit with.
//
//	func TestMain(m *testing.M) { os.Exit(workertest.Main(m)) }
func Main(m *testing.M) int {
	if program = os.Getenv(built); program != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "berth-unpack-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, worker.Program)
	if err := Build(program, "berth/services/imaged/cmd/"+worker.Program); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	os.Setenv(built, program)
	return m.Run()
}

// Build builds a program, without cgo even when the tests are built for the race
// detector.
func Build(program, pkg string) error {
	build := exec.Command("go", "build", "-o", program, pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// Workers start the program that Main has built.
func Workers(t testing.TB) *worker.Workers {
	t.Helper()
	if program == "" {
		t.Fatal("the package's TestMain does not call workertest.Main")
	}
	return &worker.Workers{Path: program}
}
