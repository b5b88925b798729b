package machine

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Image makes a root file system of busybox, and a tar of it, whose path it returns.
func Image(work string) (string, error) {
	fs := filepath.Join(work, "fs")
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(fs, dir), 0o755); err != nil {
			return "", err
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return "", err
	}
	files := map[string][]byte{"bin/busybox": busybox, "etc/passwd": []byte("root:x:0:0:root:/:/bin/sh\n"), "etc/group": []byte("root:x:0:\n")}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(fs, name), content, 0o755); err != nil {
			return "", err
		}
	}
	for _, applet := range []string{"sh", "true", "sleep"} {
		if err := os.Symlink("busybox", filepath.Join(fs, "bin", applet)); err != nil {
			return "", err
		}
	}
	tar := filepath.Join(work, "fs.tar")
	if out, err := exec.Command("tar", "-C", fs, "--owner=0", "--group=0", "-cf", tar, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("tar: %w: %s", err, out)
	}
	return tar, nil
}
