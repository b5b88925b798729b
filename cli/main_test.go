package main

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
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
}

func TestGlance(t *testing.T) {
	for args, want := range map[string]struct{ word, host, run string }{
		"ps -a":                               {word: "ps"},
		"-H x ps":                             {word: "ps", host: "x"},
		"--host=unix:///a=b ps -H y":          {word: "ps", host: "unix:///a=b"},
		"--root /r --run=/x up -d":            {word: "up", run: "/x"},
		"--run /x --config f run -H z i":      {word: "run", run: "/x"},
		"--root=/r --config=f --unknown logs": {word: "logs"},
		"--version":                           {},
		"-H":                                  {},
		"":                                    {},
	} {
		word, where := glance(strings.Fields(args))
		if word != want.word || where.host != want.host || where.run != want.run {
			t.Errorf("glance(%q) = %q, %q, %q, want %+v", args, word, where.host, where.run, want)
		}
	}
}

// TestConnectEarly has a command use the connection that was begun for it, unless its flags name another engine.
func TestConnectEarly(t *testing.T) {
	listen := func() (string, net.Listener) {
		path := filepath.Join(t.TempDir(), "apid.sock")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return "unix://" + path, l
	}
	here, served := listen()
	other, _ := listen()
	t.Setenv("BERTH_HOST", "")
	for host, used := range map[string]bool{here: true, other: false} {
		a := &app{}
		a.connectEarly(app{host: here})
		client, err := served.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		early := a.early
		a.host = host
		e, err := a.connect()
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		if (e.conn == early) != used {
			t.Errorf("with %s: the early connection is used: %v, want %v", host, !used, used)
		}
		client.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadFull(client, make([]byte, 24)); err != nil {
			t.Errorf("no preface on the early connection: %v", err)
		}
		if _, err := io.Copy(io.Discard, client); used == (err == nil) {
			t.Errorf("with %s: the early connection stays open: %v, want %v", host, err != nil, used)
		}
	}
	a := &app{}
	if a.connectEarly(app{host: "unix:///nowhere.sock"}); a.early == nil {
		t.Error("nothing of an engine that does not run")
	}
	a.host = "unix:///nowhere.sock"
	e, err := a.connect()
	if err != nil {
		t.Fatal(err)
	}
	var dial *rpc.DialError
	if _, err := e.system.Version(t.Context(), &apiv1.SystemServiceVersionRequest{}); !errors.As(err, &dial) {
		t.Errorf("its first call fails with %v, want a DialError", err)
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
