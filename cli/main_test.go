package main

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"berth/cli/rpc"
)

var update = flag.Bool("update", false, "write the golden files")

// TestHelp holds every help text against testdata/help, so that a change of words is a change someone made.
func TestHelp(t *testing.T) {
	t.Setenv("BERTH_ROOT", "")
	t.Setenv("BERTH_RUN", "")
	t.Setenv("BERTH_CONFIG", "")
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		if c.Hidden || strings.HasPrefix(c.CommandPath(), "berth completion") || c.Name() == "help" {
			return
		}
		var out bytes.Buffer
		c.SetOut(&out)
		if err := c.Help(); err != nil {
			t.Error(err)
		}
		file := filepath.Join("testdata", "help", strings.ReplaceAll(c.CommandPath(), " ", "-")+".txt")
		if *update {
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
		want, err := os.ReadFile(file)
		if err != nil || !bytes.Equal(out.Bytes(), want) {
			t.Errorf("help of %s differs from %s (go test ./cli -update writes it): %v", c.CommandPath(), file, err)
		}
		if !c.HasSubCommands() && c.Example == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
	}
	walk((&app{}).rootCommand(""))
}

// TestCommandAlone checks that a command made alone is the one of the whole tree.
func TestCommandAlone(t *testing.T) {
	for _, c := range (&app{}).rootCommand("").Commands() {
		if c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		alone := (&app{}).rootCommand(c.Name()).Commands()
		if len(alone) != 1 || alone[0].Use != c.Use || alone[0].GroupID != c.GroupID {
			t.Errorf("berth %s alone makes %v", c.Name(), alone)
		}
	}
	for args, want := range map[string]string{"ps -a": "ps", "-H x ps": "ps", "--root /r --run=/x up -d": "up", "--version": "", "": ""} {
		if got := firstWord(strings.Fields(args)); got != want {
			t.Errorf("firstWord(%q) = %q, want %q", args, got, want)
		}
	}
}

func TestReport(t *testing.T) {
	detailed := func(c rpc.Code, reason, hint, text string) error {
		return &rpc.Status{Code: c, Message: text, Reason: reason, Metadata: map[string]string{"hint": hint}}
	}
	dialed := func(err error) error {
		return &rpc.Status{Code: rpc.Unavailable, Cause: &rpc.DialError{Path: "/s", Err: os.NewSyscallError("connect", err)}}
	}
	for _, tc := range []struct {
		err  error
		text string
		code int
	}{
		{detailed(rpc.NotFound, "COMMAND_NOT_FOUND", "", "no such command"), "error: no such command\nhint: " + nextStep["COMMAND_NOT_FOUND"] + "\n", 127},
		{detailed(rpc.PermissionDenied, "COMMAND_NOT_EXECUTABLE", "", "x"), "error: x\nhint: " + nextStep["COMMAND_NOT_EXECUTABLE"] + "\n", 126},
		{detailed(rpc.AlreadyExists, "NAME_IN_USE", "remove it", "name web is taken"), "error: name web is taken\nhint: remove it\n", 125},
		{failed(detailed(rpc.AlreadyExists, "NAME_IN_USE", "", "two\nlines")), "error: two; lines\n", 1},
		{exitCode(7), "", 7},
		{dialed(syscall.ENOENT), "error: cannot reach the engine at unix:///s: no such file or directory\nhint: start it with `berth up --detach`, or `systemctl start berth-apid.socket`\n", 125},
		{dialed(syscall.ECONNREFUSED), "error: cannot reach the engine at unix:///s: connection refused\nhint: start it with `berth up --detach`, or `systemctl start berth-apid.socket`\n", 125},
		{dialed(syscall.EACCES), "error: cannot reach the engine at unix:///s: permission denied\nhint: join the group berth (usermod -aG berth USER, then log in again), or use sudo\n", 125},
		{failed(dialed(syscall.EMFILE)), "error: cannot reach the engine at unix:///s: too many open files\n", 1},
		{&rpc.Status{Code: rpc.Unavailable, Cause: &rpc.LostError{Err: io.ErrUnexpectedEOF}}, "error: the engine closed the connection\nhint: it may be restarting: try again, or see `berth version`\n", 125},
		{&rpc.Status{Code: rpc.Canceled, Message: "cancelled"}, "error: cancelled\n", 130},
	} {
		var b bytes.Buffer
		if code := report(&b, tc.err); code != tc.code || b.String() != tc.text {
			t.Errorf("report(%v) = %d %q, want %d %q", tc.err, code, b.String(), tc.code, tc.text)
		}
	}
}

func TestNoEngine(t *testing.T) {
	for _, args := range [][]string{{"ps"}, {"run", "x"}, {"pull", "x"}, {"jobs"}} {
		code := execute(append([]string{"-H", "unix://" + t.TempDir() + "/none.sock"}, args...))
		if want := map[bool]int{true: 125, false: 1}[args[0] == "run"]; code != want {
			t.Errorf("%v without an engine: exit %d, want %d", args, code, want)
		}
	}
	if code := execute([]string{"-H", "tcp://127.0.0.1:1", "ps"}); code != 1 {
		t.Errorf("an address that is not a unix socket: exit %d", code)
	}
}

func TestRegistryOf(t *testing.T) {
	for ref, want := range map[string]string{"nginx": "docker.io", "a/b": "docker.io", "localhost/x": "localhost", "127.0.0.1:5000/a/b:c": "127.0.0.1:5000", "quay.io/x": "quay.io"} {
		if got := registryOf(ref); got != want {
			t.Errorf("registryOf(%q) = %q, want %q", ref, got, want)
		}
	}
}
