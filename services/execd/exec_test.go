package execd

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
)

func TestExec(t *testing.T) {
	e := start(t)
	s := script("sleep 1000")
	s.Env = []string{"FROM=container"}
	id := e.up1(s)
	r, err := e.exec(id, &apiv1.ExecRequest_Open{Args: []string{"sh", "-c", "cat; echo $FROM $MORE $HOSTNAME; pwd; echo err >&2; exit 9"},
		Env: []string{"MORE=exec"}, WorkingDir: "/tmp"}, []byte("in\n"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "in\ncontainer exec " + id[:12] + "\n/tmp\n"; r.out != want || r.errOut != "err\n" || r.exit.GetCode() != 9 {
		t.Errorf("got %q, %q, %v, want %q", r.out, r.errOut, r.exit, want)
	}
	r, err = e.exec(id, &apiv1.ExecRequest_Open{Args: []string{"id"}, User: "alice"}, nil)
	if err != nil || !strings.HasPrefix(r.out, "uid=1000(alice)") {
		t.Errorf("as alice: %q, %v", r.out, err)
	}
	_, err = e.exec(id, &apiv1.ExecRequest_Open{Args: []string{"nosuchcommand"}}, nil)
	if !errors.Is(err, fault.NotFound) {
		t.Errorf("missing command: %v", err)
	}
	if r, err := e.exec(id, &apiv1.ExecRequest_Open{Args: []string{"sh", "-c", "kill -9 $$"}}, nil); err != nil || r.exit.GetCode() != 137 {
		t.Errorf("killed: %v, %v", r.exit, err)
	}
}

func TestDetachedExecIsListedUntilItEnds(t *testing.T) {
	e := start(t)
	id := e.up1(script("sleep 1000"))
	if _, err := e.exec(id, &apiv1.ExecRequest_Open{Args: []string{"sleep", "999"}, Detach: true}, nil); err != nil {
		t.Fatal(err)
	}
	execs := e.inspect(id).Execs
	if len(execs) != 1 || !execs[0].Running || execs[0].Pid == 0 {
		t.Fatalf("execs: %v", execs)
	}
	if _, err := e.exec(id, &apiv1.ExecRequest_Open{Args: []string{"sh", "-c", "for p in /proc/[0-9]*; do case $(cat $p/cmdline | tr '\\0' ' ') in 'sleep 999 ') kill -9 ${p#/proc/};; esac; done"}}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the session is not listed any more", func() bool { return len(e.inspect(id).Execs) == 0 })
}

// What a session leaves in the background neither holds its end up nor is killed
// by writing.
func TestExecEndsAlthoughItsOutputIsInherited(t *testing.T) {
	e := start(t)
	id := e.up1(script("sleep 1000"))
	begin := time.Now()
	r, err := e.exec(id, &apiv1.ExecRequest_Open{Args: []string{"sh", "-c", "(sleep 1; echo late; echo survived > /tmp/late) & echo now"}}, nil)
	if err != nil || r.out != "now\n" {
		t.Fatalf("got %q, %v", r.out, err)
	}
	if d := time.Since(begin); d > 800*time.Millisecond {
		t.Errorf("took %v", d)
	}
	eventually(t, "the background process lived on", func() bool {
		r, err := e.exec(id, &apiv1.ExecRequest_Open{Args: []string{"cat", "/tmp/late"}}, nil)
		return err == nil && r.out == "survived\n"
	})
}

func TestExecWithTerminal(t *testing.T) {
	e := start(t)
	id := e.up1(script("sleep 1000"))
	r, err := e.exec(id, &apiv1.ExecRequest_Open{Args: []string{"sh", "-c", "tty; stty size; echo $TERM"}, Tty: true,
		TerminalSize: &apiv1.TerminalSize{Rows: 33, Columns: 44}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := "/dev/pts/0\r\n33 44\r\nxterm\r\n"; r.out != want {
		t.Errorf("got %q, want %q", r.out, want)
	}
}

func TestAttach(t *testing.T) {
	e := start(t)
	s := script("echo before; while read line; do echo \"got $line\"; done; exit 4")
	s.OpenStdin = true
	id := e.up1(s)
	eventually(t, "the first line is logged", func() bool { return e.logs(&apiv1.LogsRequest{Container: id}) == "before\n" })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream, err := e.api.Attach(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(m *apiv1.AttachRequest) {
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	send(&apiv1.AttachRequest{Message: &apiv1.AttachRequest_Open_{Open: &apiv1.AttachRequest_Open{
		Container: id, Attach: &apiv1.AttachOptions{Stdin: true, Stdout: true, Stderr: true, Logs: true}}}})
	send(&apiv1.AttachRequest{Message: &apiv1.AttachRequest_Stdin{Stdin: []byte("one\ntwo\n")}})
	send(&apiv1.AttachRequest{Message: &apiv1.AttachRequest_Stdin{}})
	var r result
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if o := m.GetOutput(); o != nil {
			r.add(o)
		}
		if x := m.GetExited(); x != nil {
			r.exit = x
		}
	}
	if want := "before\ngot one\ngot two\n"; r.out != want || r.exit.GetCode() != 4 {
		t.Errorf("got %q, %v, want %q", r.out, r.exit, want)
	}
}

func TestTerminalContainer(t *testing.T) {
	e := start(t)
	s := script("tty; stty size; read line; echo \"<$line>\"")
	s.Tty, s.TerminalSize = true, &apiv1.TerminalSize{Rows: 20, Columns: 70}
	r, err := e.run(s, []byte("hello\r"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"/dev/pts/0\r\n", "20 70\r\n", "<hello>\r\n"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("output %q lacks %q", r.out, want)
		}
	}
}

// F-28: a client that never reads delays neither the container nor its own
// log; when it reads at last it gets everything, from the log.
func TestF28SlowReaderGetsEverythingFromTheLog(t *testing.T) {
	e := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s := script("read go; seq 1 300000; exit 5")
	s.OpenStdin = true
	id := e.up1(s)
	stream, err := e.api.Attach(ctx)
	if err != nil {
		t.Fatal(err)
	}
	stream.Send(&apiv1.AttachRequest{Message: &apiv1.AttachRequest_Open_{Open: &apiv1.AttachRequest_Open{
		Container: id, Attach: &apiv1.AttachOptions{Stdin: true, Stdout: true, Stderr: true}}}})
	stream.Send(&apiv1.AttachRequest{Message: &apiv1.AttachRequest_Stdin{Stdin: []byte("go\n")}})
	if x := e.wait(id); x.GetCode() != 5 {
		t.Fatalf("the container ended with %v", x)
	}
	var r result
	for {
		m, err := stream.Recv()
		if err != nil {
			break
		}
		if o := m.GetOutput(); o != nil {
			r.add(o)
		}
		if x := m.GetExited(); x != nil {
			r.exit = x
		}
	}
	if n := strings.Count(r.out, "\n"); n != 300000 || !strings.HasSuffix(r.out, "\n300000\n") || r.exit.GetCode() != 5 {
		t.Errorf("got %d lines, %v", n, r.exit)
	}
}

// Who runs a command and reads slowly gets all of its output, more than any log
// keeps: the command waits for its reader, as it would for one of a pipe.
func TestSlowReaderOfARunGetsEverything(t *testing.T) {
	e := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	stream, err := e.launch.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s := script("dd if=/dev/zero bs=65536 count=256 2>/dev/null")
	s.AutoRemove, s.Log = true, &apiv1.LogSpec{MaxSizeBytes: 64 << 10, MaxFiles: 2}
	stream.Send(&execv1.RunRequest{Message: &execv1.RunRequest_Open_{Open: &execv1.RunRequest_Open{
		Create:  &execv1.CreateRequest{Id: newID(), Spec: s, Rootfs: e.rootfs(), CreatedBy: "uid=0"},
		Network: private(), Attach: &apiv1.AttachOptions{Stdout: true, Stderr: true},
	}}})
	got, messages := 0, 0
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
		if o := m.GetOutput(); o != nil {
			got += len(o.Data)
			if messages++; messages%100 == 1 {
				time.Sleep(50 * time.Millisecond)
			}
		}
		if x := m.GetExited(); x != nil {
			if got != 16<<20 || x.Code != 0 {
				t.Errorf("got %d bytes, %v", got, x)
			}
			return
		}
	}
}
