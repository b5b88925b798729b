package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// disk is a new ext4 with a journal, on a loop device.
type disk struct{ file, dir string }

func newDisk(work string) (*disk, error) {
	d := &disk{file: filepath.Join(work, "disk.ext4"), dir: filepath.Join(work, "disk")}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(d.file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(12 << 30); err != nil {
		return nil, err
	}
	// The kernel would set up what mkfs leaves out in the background, during somebody's pull: noinit_itable keeps it from that.
	for _, c := range [][]string{
		{"mkfs.ext4", "-q", "-F", "-O", "has_journal", "-E", "lazy_itable_init=1,lazy_journal_init=1", d.file},
		{"mount", "-o", "loop,noatime,noinit_itable", d.file, d.dir},
	} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", c[0], err, out)
		}
	}
	return d, os.Chmod(d.dir, 0o755)
}

// close waits for the engine's last process to let go.
func (d *disk) close() error {
	var out []byte
	err := fmt.Errorf("never tried")
	for deadline := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		out, err = exec.Command("umount", "-R", d.dir).CombinedOutput()
	}
	if err != nil {
		return fmt.Errorf("umount: %w: %s", err, out)
	}
	return os.Remove(d.file)
}
