// Command berth-monitor is the parent of all containers of one engine; see
// package monitor. execd starts it, with the listening socket as descriptor 3.
package main

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/faultpoint"
	"berth/internal/processors"
	"berth/internal/rest"
	"berth/internal/version"
	"berth/libcontainer/loop"
	"berth/services/execd/monitor"
	"berth/services/execd/monitor/starter"
)

// idle is how long the monitor outlives its last container when no execd is
// there.
const idle = 15 * time.Second

// The first thread takes no part in the work: what enters a container or a control group must not be on it
// (cgroup.Group.Enter), and would have to go on to another.
func init() { runtime.LockOSThread() }

func main() {
	dir := flag.String("dir", "", "folder of the engine's run state")
	initPath := flag.String("init", "", "path of berth-init")
	var ready starter.Ready
	flag.StringVar(&ready.Parent, "parent", "", "cgroup that containers live under")
	flag.IntVar(&ready.Size, "pool", 0, "number of inits to keep ready")
	flag.Int64Var(&ready.Pids, "pids", 0, "their limit of processes")
	layers := flag.String("layers", "", "folder below which layers' images are; loop devices left of them are freed")
	list := flag.Bool("list-fault-points", false, "list the points "+faultpoint.Env+" can name, and exit")
	flag.Parse()
	if *list {
		for _, p := range faultpoint.List() {
			fmt.Printf("%s\t%s\n", p.Name, p.Doc)
		}
		return
	}
	if err := run(*dir, *initPath, *layers, ready); err != nil {
		fmt.Fprintln(os.Stderr, "berth-monitor: error:", err)
		os.Exit(1)
	}
}

func run(dir, initPath, layers string, ready starter.Ready) error {
	lg := log.New(os.Stderr, "berth-monitor: ", log.LstdFlags|log.Lmicroseconds|log.LUTC)
	syscall.Umask(0o077)
	// It ends by itself, or by SIGKILL. SIGPIPE: nobody reads the log.
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	processors.Share()
	debug.SetGCPercent(50) // small heap, short peaks
	// A process that is on its way into a container shares our memory for a moment
	// (libcontainer.Launcher.Exec).
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make undumpable: %w", err)
	}
	if err := faultpoint.Arm(os.Getenv(faultpoint.Env)); err != nil {
		return err
	}
	lock, err := takeLock(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	l, err := inheritedListener()
	if err != nil {
		return err
	}
	freeLoops(layers, lg)
	growTable()
	s, err := starter.New(initPath)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.KeepReady(ready); err != nil {
		lg.Printf("keep inits ready: %v", err) // slower, but it works
	}
	m := monitor.New(s, version.String(), lg)
	defer m.Close()
	rest.Worked() // starting was
	go func() {
		<-m.Done(idle)
		l.Close()
	}()
	return m.Serve(l)
}

// freeLoops frees the loop devices that a predecessor was attaching when it ended.
func freeLoops(layers string, lg *log.Logger) {
	if layers == "" {
		return
	}
	freed, err := loop.Release(layers)
	if len(freed) > 0 {
		lg.Printf("freed loop devices left behind: %v", freed)
	}
	if err != nil {
		lg.Printf("free loop devices left behind: %v", err)
	}
}

// takeLock makes sure that there is one monitor for a folder. A predecessor
// that is just ending is waited for.
func takeLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir+"/monitor.lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(end) {
			f.Close()
			return nil, fmt.Errorf("another monitor serves %s: %w", dir, err)
		}
	}
	f.Truncate(0)
	fmt.Fprintln(f, os.Getpid())
	return f, nil
}

func inheritedListener() (*net.UnixListener, error) {
	const fd = 3
	syscall.CloseOnExec(fd)
	f := os.NewFile(fd, "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is not the listening socket: %w", fd, err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, fmt.Errorf("descriptor %d is not a unix socket", fd)
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}

// growTable makes the table of descriptors large at once. Growing it later, in a
// process with several threads, waits for an RCU grace period (expand_fdtable,
// fs/file.c): milliseconds in the middle of a start.
func growTable() {
	const size = 4096
	if fd, _, errno := syscall.Syscall(syscall.SYS_FCNTL, 0, syscall.F_DUPFD_CLOEXEC, size-1); errno == 0 {
		syscall.Close(int(fd))
	}
}
