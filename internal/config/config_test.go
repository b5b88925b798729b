package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/internal/fault"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "berth.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFileOverDefaults(t *testing.T) {
	t.Setenv("BERTH_ROOT", "")
	t.Setenv("BERTH_RUN", "")
	c, err := Load(write(t, `
root = "/srv/berth"
[imaged]
stall_timeout = "5s"
max_layer_size = "1GiB"
[imaged.mirrors]
"docker.io" = ["https://mirror.example"]
[execd]
log_max_size = "4k"
`), "", "")
	if err != nil {
		t.Fatal(err)
	}
	if c.Root != "/srv/berth" || c.Run != DefaultRun {
		t.Errorf("root %q, run %q", c.Root, c.Run)
	}
	if time.Duration(c.Imaged.StallTimeout) != 5*time.Second || c.Imaged.MaxLayerSize != 1<<30 || c.Execd.LogMaxSize != 4096 {
		t.Errorf("values: %+v %+v", c.Imaged, c.Execd)
	}
	if got := c.Imaged.Mirrors["docker.io"]; len(got) != 1 {
		t.Errorf("mirrors = %v", got)
	}
	if c.Imaged.ParallelDownloads != Default().Imaged.ParallelDownloads {
		t.Error("a key not in the file lost its default")
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"[execd]\n\nlog_maxsize = \"1m\"\n", `berth.toml:3: unknown key "execd.log_maxsize"`},
		{"[nets]\nx = 1\n", `berth.toml:1: unknown key "nets"`},
		{"root = 5\n", "berth.toml:1: "},
		{"[imaged]\nstall_timeout = \"-1s\"\n", "negative duration"},
		{"[imaged]\nstall_timeout = \"soon\"\n", "berth.toml:2: "},
		{"root = \n", "berth.toml:1: "},
		{"log_level = \"loud\"\n", `log_level = "loud": want one of trace`},
		{"[apid]\njob_history = 0\n", "apid.job_history = 0"},
	} {
		_, err := Load(write(t, c.text), "", "")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: err = %v, want %q", c.text, err, c.want)
		}
		if !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%q: kind %v", c.text, fault.KindOf(err))
		}
	}
	if _, err := Load("/nonexistent/berth.toml", "", ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("named file absent: %v", err)
	}
}

func TestFlagsOverEnvironmentOverFile(t *testing.T) {
	file := write(t, "root = \"/file\"\nrun = \"/filerun\"\n")
	t.Setenv("BERTH_ROOT", "/env")
	t.Setenv("BERTH_RUN", "/envrun")
	c, err := Load(file, "/flag", "")
	if err != nil {
		t.Fatal(err)
	}
	if c.Root != "/flag" || c.Run != "/envrun" {
		t.Errorf("root %q, run %q", c.Root, c.Run)
	}
}

func TestInstance(t *testing.T) {
	c := Default()
	if c.Instance() != "" || c.Named("berth0") != "berth0" {
		t.Errorf("default root has instance %q", c.Instance())
	}
	c.Root = "/tmp/a"
	a := c.Named("berth")
	c.Root = "/tmp/a/"
	if c.Named("berth") != a {
		t.Error("a trailing slash changes the instance")
	}
	c.Root = "/tmp/b"
	if c.Named("berth") == a {
		t.Error("two roots share an instance")
	}
	if len(a) > 15 { // IFNAMSIZ - 1
		t.Errorf("%q does not fit a link name", a)
	}
}
