package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"berth/cli/apiv1"
	"berth/internal/rest"
)

// The daemons in the order of starting; any order works, this one logs the fewest retries.
var daemonNames = []string{"imaged", "netd", "execd", "apid"}

const (
	startTime  = 30 * time.Second       // until all daemons must serve
	stopTime   = 15 * time.Second       // until a daemon that was asked to stop is killed
	minBackoff = 100 * time.Millisecond // before the first restart of a daemon that died
	maxBackoff = time.Second            // so that the engine is whole again within 2 s of whatever killed a daemon
	logLimit   = 16 << 20               // bytes of a daemon's log file before it is set aside
)

func (a *app) upCommand() *cobra.Command {
	var detach bool
	c := &cobra.Command{
		Use: "up [OPTIONS]", Short: "Start the engine's daemons on a host without systemd", Args: needArgs(0, 0),
		Long: `Starts imaged, netd, execd and apid and keeps them running: one that dies is started again. Runs in the foreground
until SIGTERM or Ctrl-C; with --detach returns once all of them serve. Containers are not touched by any of this.

The engine's users and groups (berth, berth-engine, berth-apid, berth-imaged, berth-netd) are created when absent.`,
		Example: "  berth up --detach\n  berth --root /tmp/b/root --run /tmp/b/run up --detach    a second, independent engine",
		RunE: plain(func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return usagef("use sudo", "starting the engine needs root")
			}
			if err := ensureAccounts(cmd.ErrOrStderr()); err != nil {
				return err
			}
			bin, err := daemonDir()
			if err != nil {
				return err
			}
			if detach {
				return a.upDetached(cmd.Context(), cmd.ErrOrStderr())
			}
			return a.supervise(cmd.Context(), bin)
		}),
	}
	c.Flags().BoolVarP(&detach, "detach", "d", false, "return once all daemons serve")
	return c
}

// daemonDir is where the daemons are: beside this program, or where packages put them.
func daemonDir() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	for _, dir := range []string{filepath.Dir(self), "/usr/libexec/berth", "/usr/lib/berth", "/usr/local/libexec/berth"} {
		if _, err := os.Stat(filepath.Join(dir, "apid")); err == nil {
			return dir, nil
		}
	}
	return "", usagef("`make build` puts all programs into bin/", "the daemons are not beside %s", self)
}

// ensureAccounts creates the engine's users and groups as a package would.
func ensureAccounts(w io.Writer) error {
	add := func(kind, name string, args ...string) error {
		if getent(kind, name) {
			return nil
		}
		tool := map[string]string{"group": "groupadd", "passwd": "useradd"}[kind]
		path := ""
		for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/bin/"} {
			if _, err := os.Stat(dir + tool); err == nil {
				path = dir + tool
				break
			}
		}
		if path == "" {
			return usagef("create it by hand, or install "+tool, "%s %s does not exist and %s is not installed", kind, name, tool)
		}
		fmt.Fprintf(w, "creating %s %s\n", strings.Replace(kind, "passwd", "user", 1), name)
		out, err := exec.Command(path, append(args, name)...).CombinedOutput()
		if err != nil && !getent(kind, name) {
			return usagef("", "%s %s: %v: %s", tool, name, err, oneLine(strings.TrimSpace(string(out))))
		}
		return nil
	}
	for _, g := range []string{"berth", "berth-engine"} {
		if err := add("group", g, "--system"); err != nil {
			return err
		}
	}
	for _, u := range []string{"berth-apid", "berth-imaged", "berth-netd"} {
		if err := add("passwd", u, "--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", "--gid", "berth-engine"); err != nil {
			return err
		}
	}
	return nil
}

// getent looks a name up in /etc/passwd or /etc/group.
func getent(file, name string) bool {
	b, err := os.ReadFile("/etc/" + file)
	return err == nil && (bytes.HasPrefix(b, []byte(name+":")) || bytes.Contains(b, []byte("\n"+name+":")))
}

// upDetached starts the supervisor in a session of its own and waits until every daemon serves.
func (a *app) upDetached(ctx context.Context, w io.Writer) error {
	if a.serving(ctx) == nil && a.supervisor() != 0 {
		fmt.Fprintln(w, "the engine is up already")
		return nil
	}
	logs := filepath.Join(a.root, "log")
	// The logs are root's, but what is above them the daemons' users must pass.
	if err := errors.Join(os.MkdirAll(a.root, 0o711), os.MkdirAll(logs, 0o700)); err != nil {
		return err
	}
	logPath := filepath.Join(logs, "up.log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{"--root", a.root, "--run", a.run}
	if a.cfg != "" {
		args = append(args, "--config", a.cfg)
	}
	cmd := exec.Command(self, append(args, "up")...)
	cmd.Env = append(os.Environ(), logsEnv+"="+logs)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	died := make(chan error, 1)
	go func() { died <- cmd.Wait() }()
	deadline := time.Now().Add(startTime)
	for {
		last := a.serving(ctx)
		if last == nil {
			return nil
		}
		select {
		case <-died:
			b, _ := os.ReadFile(logPath)
			return usagef("logs are in "+logs, "the engine did not start: %s", strings.TrimPrefix(oneLine(lastLines(string(b), 2)), "error: "))
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return usagef("logs are in "+logs, "the engine does not serve after %s: %v", startTime, last)
		}
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}

// serving is nil when apid answers and says that all daemons serve.
func (a *app) serving(ctx context.Context) error {
	local := *a
	local.host = "unix://" + a.run + "/apid.sock"
	e, err := local.connect()
	if err != nil {
		return err
	}
	defer e.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	r, err := e.system.Version(ctx, &apiv1.SystemServiceVersionRequest{})
	if err != nil {
		return err
	}
	for _, d := range r.GetDaemons() {
		if d.GetStatus() != "serving" {
			return fmt.Errorf("%s: %s", d.GetName(), d.GetStatus())
		}
	}
	if len(r.GetDaemons()) < len(daemonNames) {
		return fmt.Errorf("only %d daemons known", len(r.GetDaemons()))
	}
	return nil
}

// supervisor is the pid of the process that holds the instance's up lock, 0 when there is none.
func (a *app) supervisor() int {
	f, err := os.OpenFile(filepath.Join(a.run, "up.lock"), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil {
		return 0
	}
	b, _ := io.ReadAll(io.LimitReader(f, 32))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid
}

// supervise runs the daemons until told to stop.
func (a *app) supervise(ctx context.Context, bin string) error {
	if err := os.MkdirAll(a.run, 0o711); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(a.run, "up.lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return usagef("stop it with `berth down`", "the engine under %s is up already, kept by process %d", a.run, a.supervisor())
	}
	_ = lock.Truncate(0)
	if _, err := lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return err
	}
	a.stopDaemons(os.Stderr) // those a killed supervisor left
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// apid stops before the others: it gives back what it had from them.
	others, stopOthers := context.WithCancel(context.WithoutCancel(ctx))
	defer stopOthers()
	var wg sync.WaitGroup
	if dir := os.Getenv(logsEnv); dir != "" {
		go boundLogs(dir)
	}
	for _, name := range daemonNames {
		if name != "apid" {
			wg.Go(func() { a.keep(others, filepath.Join(bin, name), name) })
		}
	}
	rest.Started() // what made the command line
	a.keep(ctx, filepath.Join(bin, "apid"), "apid")
	stopOthers()
	wg.Wait()
	_ = lock.Truncate(0)
	return nil
}

// keep runs one daemon and starts it again, with growing pauses, whenever it ends by itself.
func (a *app) keep(ctx context.Context, path, name string) {
	pause := minBackoff
	for ctx.Err() == nil {
		began := time.Now()
		err := a.runDaemon(ctx, path, name)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > 10*time.Second {
			pause = minBackoff
		}
		fmt.Fprintf(os.Stderr, "%s ended (%v); starting it again in %s\n", name, err, pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, maxBackoff)
	}
}

// runDaemon runs a daemon once. When ctx ends it is asked to stop, and killed when it does not.
func (a *app) runDaemon(ctx context.Context, path, name string) error {
	args := []string{"--root", a.root, "--run", a.run}
	if a.cfg != "" {
		args = append(args, "--config", a.cfg)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", os.Stdout, os.Stderr
	if dir := os.Getenv(logsEnv); dir != "" {
		log, err := os.OpenFile(logFile(dir, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
	}
	// A session of its own: the terminal's Ctrl-C reaches the supervisor, which stops the daemons in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := startCoarse(cmd); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-ended:
		return err
	case <-time.After(stopTime):
		_ = cmd.Process.Kill()
		return <-ended
	}
}

// logsEnv names the directory of the daemons' logs to the supervisor that `berth up --detach` starts.
const logsEnv = "BERTH_UP_LOGS"

func logFile(dir, daemon string) string { return filepath.Join(dir, daemon+".log") }

// boundLogs looks at the daemons' logs once a minute, at all of them at once: an idle engine sleeps. The kernel counts
// the minute. It lets one end up to 60 ms late (poll(2): a thousandth), and Go, with a timer of its own, would wake up
// every 20 µs to 10 ms of these to see whether it has to come instead.
func boundLogs(dir string) {
	for {
		for left := (unix.Timespec{Sec: 60}); unix.Nanosleep(&left, &left) == unix.EINTR; {
		}
		for _, name := range daemonNames {
			boundLog(logFile(dir, name))
		}
	}
}

// boundLog sets a log aside (NAME.log.1) when it has grown past the limit. The daemon appends, so the file can be cut
// under it.
func boundLog(path string) {
	if st, err := os.Lstat(path); err != nil || st.Size() < logLimit {
		return
	}
	log, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	defer log.Close()
	old, err := os.OpenFile(path+".1", os.O_CREATE|os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return
	}
	_, err = io.Copy(old, log)
	if cerr := old.Close(); err == nil && cerr == nil {
		_ = log.Truncate(0)
	}
}

func (a *app) downCommand() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Stop the daemons that `berth up` started; containers go on", Args: needArgs(0, 0), Example: "  berth down",
		RunE: plain(func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return usagef("use sudo", "stopping the engine needs root")
			}
			pid := a.supervisor()
			if pid == 0 {
				if a.stopDaemons(cmd.ErrOrStderr()) == 0 {
					fmt.Fprintln(cmd.ErrOrStderr(), "the engine is not up")
				}
				return nil
			}
			if err := endProcess(pid, stopTime+5*time.Second); err != nil {
				return usagef("", "stop the engine: process %d: %v", pid, err)
			}
			return nil
		}),
	}
}

// stopDaemons stops daemons of this instance that nobody supervises and says how many there were. Who serves a socket
// is asked of the kernel, not read from a file.
func (a *app) stopDaemons(w io.Writer) int {
	n := 0
	for _, sock := range []string{"apid.sock", "engine/execd.sock", "engine/netd.sock", "engine/imaged.sock"} {
		pid := servedBy(filepath.Join(a.run, sock))
		if pid <= 1 || pid == os.Getpid() {
			continue
		}
		n++
		fmt.Fprintf(w, "stopping %s (process %d)\n", strings.TrimSuffix(filepath.Base(sock), ".sock"), pid)
		if err := endProcess(pid, stopTime); err != nil {
			fmt.Fprintf(w, "warning: process %d: %v\n", pid, err)
		}
	}
	return n
}

// servedBy is the pid of the process that listens on a unix socket (SO_PEERCRED, unix(7)); 0 when none does.
func servedBy(path string) int {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	if unix.Connect(fd, &unix.SockaddrUnix{Name: path}) != nil {
		return 0
	}
	c, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0
	}
	return int(c.Pid)
}

// endProcess sends SIGTERM, waits, and kills what does not end.
func endProcess(pid int, patience time.Duration) error {
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	defer p.Release()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		if errors.Is(err, os.ErrProcessDone) {
			return nil
		}
		return err
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if errors.Is(p.Signal(syscall.Signal(0)), os.ErrProcessDone) {
			return nil
		}
	}
	return p.Signal(syscall.SIGKILL)
}
