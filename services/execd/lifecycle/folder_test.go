package lifecycle

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"berth/services/execd/monitor"
)

// TestFolderGoesWhileTheExitIsWritten: on a busy machine, two of three thousand
// containers left a folder.
func TestFolderGoesWhileTheExitIsWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	for round := range 1500 {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"hostname", "hosts", "resolv.conf"} {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		begun, written := make(chan struct{}), make(chan struct{})
		go func() { // as the monitor does it
			defer close(written)
			close(begun)
			tmp := filepath.Join(dir, "."+monitor.ExitFile)
			if os.WriteFile(tmp, []byte("{}"), 0o600) == nil {
				os.Rename(tmp, filepath.Join(dir, monitor.ExitFile))
			}
		}()
		<-begun
		err := removeFolder(dir)
		<-written
		if _, missing := os.Stat(dir); err != nil || !errors.Is(missing, os.ErrNotExist) {
			t.Fatalf("round %d: %v, and the folder is there", round, err)
		}
	}
}
