package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestLogsAreBounded: a log that has grown too long is set aside, and what its daemon appends next begins a new one.
func TestLogsAreBounded(t *testing.T) {
	path := logFile(t.TempDir(), "netd")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	long := bytes.Repeat([]byte("line\n"), logLimit/5+1)
	if _, err := log.Write(long); err != nil {
		t.Fatal(err)
	}
	boundLog(path)
	log.WriteString("next\n")
	if got, _ := os.ReadFile(path); string(got) != "next\n" {
		t.Errorf("the log holds %d bytes, want the last line", len(got))
	}
	if got, _ := os.ReadFile(path + ".1"); !bytes.Equal(got, long) {
		t.Errorf("set aside are %d bytes of %d", len(got), len(long))
	}
	boundLog(path) // short: stays
	if got, _ := os.ReadFile(path + ".1"); !bytes.Equal(got, long) {
		t.Error("a short log was set aside")
	}
	boundLog(filepath.Join(t.TempDir(), "none"))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path+".1", path); err != nil {
		t.Fatal(err)
	}
	boundLog(path)
	if st, err := os.Stat(path + ".1"); err != nil || st.Size() != int64(len(long)) {
		t.Errorf("a link was followed: %v", err)
	}
}
