package libcontainer

import (
	"context"
	"os"
	"testing"
)

func TestExec(t *testing.T) {
	l := newLauncher(t)
	r, w, err := os.Pipe()
	must(t, err)
	c := config(busybox(t), "echo up; exec sleep 100")
	p, err := l.Start(context.Background(), c, IO{Stdout: w})
	must(t, err)
	defer p.discard()
	buf := make([]byte, 10)
	r.Read(buf)
	got, err := capture(t, IO{}, func(io IO) (*Process, error) {
		return l.Exec(context.Background(), Target{p.Pid, p.PidFD}, &Command{Args: []string{"sh", "-c", "ls -l /proc/self/fd; ps; hostname; id; tty; pwd"}, Env: c.Command.Env, User: User{Spec: "alice"}, Cwd: "/tmp"}, io)
	})
	must(t, err)
	t.Log(got.Code, got.out)
	for _, s := range got.proc.Trace {
		t.Log(s)
	}
}
