// Package daemon is what the main function of each of Berth's daemons needs,
// written once: flags and configuration, the log, the lock that keeps a second
// instance out, directories and sockets with the right owners, dropping to the
// daemon's own user, one way to build a gRPC server and one to call another,
// and an orderly end.
//
// A daemon's package says what it is:
//
//	func Spec() daemon.Spec {
//		return daemon.Spec{
//			Name:    "imaged",
//			User:    account.Imaged,
//			Keep:    []string{"CHOWN", "DAC_OVERRIDE"},
//			Sockets: []daemon.Socket{{Name: daemon.ImagedSocket}},
//			Run:     run,
//		}
//	}
//
// and run, which a test can call with an Env of its own making, builds the
// parts from the Env and ends in [Env.Serve]. The program calls [Main].
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"berth/internal/account"
	"berth/internal/config"
	"berth/internal/fault"
	"berth/internal/faultpoint"
	"berth/internal/processors"
	"berth/internal/version"
)

// Sockets of the engine, below the run directory.
const (
	ApidSocket   = "apid.sock"
	ImagedSocket = "engine/imaged.sock"
	NetdSocket   = "engine/netd.sock"
	ExecdSocket  = "engine/execd.sock"
	NetnsSocket  = "engine/netns.sock"
)

// Spec is what a daemon is.
type Spec struct {
	Name string // "imaged"
	User string // whom it runs as, from package account; empty is root
	// Keep are the capabilities it keeps; for a User only. A program it executes
	// gets those that its syscall.SysProcAttr.AmbientCaps names, and no others.
	Keep []string
	// Lose are capabilities that a daemon running as root gives up for itself and its children.
	Lose []string
	// StateMode is the mode of its state directory; zero means 0700.
	StateMode os.FileMode
	// RunDir says that it needs a directory of its own below the run directory (0700).
	RunDir  bool
	Sockets []Socket
	// Links are names that fault points of other programs begin with whose code this one links and does not run.
	Links []string
	// AllProcessors says that its own work can keep the whole machine busy. Others share it (processors.Share).
	AllProcessors bool
	// Run does the work until ctx is done and then returns nil.
	Run func(ctx context.Context, env *Env) error
}

// Env is what Main hands to Run.
type Env struct {
	Name     string
	Log      hclog.Logger
	Config   *config.Config
	StateDir string // $ROOT/NAME, exists, writable
	RunDir   string // $RUN/NAME; exists if Spec.RunDir
	// Listeners by Socket.Name. Those of type "unix" are closed by Serve.
	Listeners map[string]*net.UnixListener
}

// SocketPath is where the socket of that name is: daemon.ImagedSocket and so on.
func (e *Env) SocketPath(name string) string { return filepath.Join(e.Config.Run, name) }

// Main runs the one of the program's daemons that the name of the process says, and exits: 0 after an orderly stop, 1
// after an error that it prints, 2 for wrong flags. A program's only daemon runs by any name.
func Main(specs ...Spec) {
	called := filepath.Base(os.Args[0])
	own := slices.IndexFunc(specs, func(s Spec) bool { return s.Name == called || len(specs) == 1 })
	var others, links []string
	for i, s := range specs {
		if i != own {
			others = append(others, s.Name)
		}
		links = append(links, s.Links...)
	}
	if own < 0 {
		fmt.Fprintf(os.Stderr, "%s: error: a program of this name is no daemon: start it as %s\n", called, strings.Join(others, ", "))
		os.Exit(2)
	}
	os.Exit(run(specs[own], append(others, links...), os.Args[1:], os.Stdout, os.Stderr))
}

type flags struct {
	root, run, config, logLevel string
	listFaultPoints, version    bool
}

func parseFlags(name string, args []string, stderr io.Writer) (flags, error) {
	var f flags
	set := pflag.NewFlagSet(name, pflag.ContinueOnError)
	set.SetOutput(stderr)
	set.StringVar(&f.root, "root", "", "directory for what survives a reboot (default $BERTH_ROOT or "+config.DefaultRoot+")")
	set.StringVar(&f.run, "run", "", "directory for sockets and locks (default $BERTH_RUN or "+config.DefaultRun+")")
	set.StringVar(&f.config, "config", "", "configuration file (default "+config.DefaultFile+", if there)")
	set.StringVar(&f.logLevel, "log-level", "", "trace, debug, info, warn or error (default: the configuration's)")
	set.BoolVar(&f.listFaultPoints, "list-fault-points", false, "list the points "+faultpoint.Env+" can name, and exit")
	set.BoolVar(&f.version, "version", false, "print the version, and exit")
	if err := set.Parse(args); err != nil {
		return f, err
	}
	if set.NArg() > 0 {
		return f, fmt.Errorf("unexpected argument %q", set.Arg(0))
	}
	return f, nil
}

func run(spec Spec, foreign, args []string, stdout, stderr io.Writer) int {
	f, err := parseFlags(spec.Name, args, stderr)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "%s: %v\n", spec.Name, err)
		return 2
	case f.version:
		fmt.Fprintln(stdout, spec.Name, version.String())
		return 0
	case f.listFaultPoints:
		for _, p := range faultpoint.List(foreign...) {
			fmt.Fprintf(stdout, "%s\t%s\n", p.Name, p.Doc)
		}
		return 0
	}
	if err := start(spec, f); err != nil {
		fmt.Fprintf(stderr, "%s: error: %v\n", spec.Name, err)
		if hint := fault.HintOf(err); hint != "" {
			fmt.Fprintf(stderr, "%s: hint: %s\n", spec.Name, hint)
		}
		return 1
	}
	return 0
}

// start does, in this order, what needs root, gives root up, and runs.
func start(spec Spec, f flags) error {
	cfg, err := config.Load(f.config, f.root, f.run)
	if err != nil {
		return err
	}
	if f.logLevel != "" {
		cfg.LogLevel = f.logLevel
	}
	log := NewLogger(spec.Name, cfg.LogLevel)
	if err := faultpoint.Arm(os.Getenv(faultpoint.Env)); err != nil {
		return err
	}
	syscall.Umask(0o077)
	if !spec.AllProcessors {
		processors.Share()
	}

	env := &Env{
		Name:     spec.Name,
		Log:      log,
		Config:   cfg,
		StateDir: filepath.Join(cfg.Root, spec.Name),
		RunDir:   filepath.Join(cfg.Run, spec.Name),
	}
	id := account.ID{UID: os.Geteuid(), GID: os.Getegid()}
	if spec.User != "" && os.Geteuid() == 0 {
		if id, err = account.User(spec.User); err != nil {
			return err
		}
	}
	if err := makeDirectories(spec, env, id); err != nil {
		return err
	}
	lock, err := takeLock(cfg.Run, spec.Name)
	if err != nil {
		return err
	}
	defer lock.Close()
	if env.Listeners, err = openSockets(cfg.Run, spec.Sockets); err != nil {
		return err
	}
	raiseLimits(log)
	if err := dropPrivileges(spec, id); err != nil {
		return err
	}
	if err := reachable(spec, env.StateDir); err != nil {
		return err
	}

	ctx, stop := signalContext(log)
	defer stop()
	log.Info("starting", "version", version.Number(), "root", cfg.Root, "run", cfg.Run, "pid", os.Getpid(), "uid", os.Geteuid())
	err = spec.Run(ctx, env)
	notify("STOPPING=1")
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil
	}
	log.Info("stopped")
	return err
}

// NewLogger writes lines to stderr: for people if that is a terminal, else JSON.
func NewLogger(name, level string) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Name:       name,
		Level:      hclog.LevelFromString(level),
		Output:     os.Stderr,
		JSONFormat: !term.IsTerminal(int(os.Stderr.Fd())),
	})
}

// signalContext is done at the first SIGTERM or SIGINT; the second ends the
// process on the spot.
func signalContext(log hclog.Logger) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	go func() {
		log.Info("stopping", "signal", (<-signals).String())
		cancel()
		<-signals
		os.Exit(1)
	}()
	return ctx, cancel
}
