package trash

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func plant(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(path, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "a/b/c"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func left(t *testing.T, dir string) int {
	t.Helper()
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func TestCan(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "trash")
	plant(t, filepath.Join(dir, "from an earlier process"))
	c, err := Open(dir, t.Errorf)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		path := filepath.Join(base, fmt.Sprint(i))
		plant(t, path)
		if err := c.Throw(path); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
		plant(t, path) // the name is free at once
	}
	if err := c.Throw(filepath.Join(base, "nothing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("throw nothing: %v", err)
	}
	c.Close()
	if n := left(t, dir); n > 1 { // what is old may have been left to the next start
		t.Errorf("%d trees are left", n)
	}
	if c, err = Open(dir, t.Errorf); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(base, "0")
	if err := c.Throw(path); err != nil {
		t.Fatal(err)
	}
	for left(t, dir) > 0 { // fails by the time limit of all tests
		time.Sleep(time.Millisecond)
	}
	c.Close()
}
