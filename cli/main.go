// Berth is the command line of the Berth container engine: Docker's words and flags over the engine's gRPC API.
//
// Every command parses its flags, makes one or a few calls to apid, and renders the answer: results on stdout, all
// else on stderr. Exit codes are Docker's: 125 when the engine refused, 126 when the command in the container cannot
// be executed, 127 when it was not found, otherwise the container's own.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"berth/cli/rpc"
)

// app is what every command shares: where the engine is and where to write.
type app struct {
	host string // gRPC target of apid, "unix:///run/berth/apid.sock"
	root string // state directory of an instance, for up, down and check
	run  string // runtime directory of an instance
	cfg  string // configuration file handed to the daemons

	early *rpc.Conn // begun before the command line was read; nil: none was
}

func main() {
	os.Exit(execute(os.Args[1:]))
}

// execute runs one command line and returns its exit code.
func execute(args []string) int {
	if len(args) == 1 && args[0] == "--version" {
		fmt.Println("Berth version " + clientVersion()) // what the command tree would say, without making it
		return 0
	}
	// A command line waits for one answer at a time. One processor spares it the threads, and their start, that Go
	// would otherwise make for goroutines which only hand a message on.
	runtime.GOMAXPROCS(1)
	growStack()
	a := &app{}
	word, where := glance(args)
	if asksEngine(word) {
		a.connectEarly(where)
	}
	root := a.rootCommand(word)
	root.SetArgs(args)
	err := root.ExecuteContext(context.Background())
	if err == nil {
		return 0
	}
	return report(os.Stderr, err)
}

// growStack makes the first goroutine's stack as large as a command needs. It would grow in steps, each with a look
// into the program's tables, which are read from the page cache, for everything that is on it by then.
//
//go:noinline
func growStack() {
	var room [20 << 10]byte
	runtime.KeepAlive(&room)
}

// glance finds the command that args name, the first that is not a flag of the root nor such a flag's value, and what
// the flags before it say of where the engine is.
func glance(args []string) (word string, where app) {
	values := map[string]*string{"-H": &where.host, "--host": &where.host, "--run": &where.run, "--root": nil, "--config": nil}
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if !strings.HasPrefix(arg, "-") {
			return arg, where
		}
		name, value, joined := strings.Cut(arg, "=")
		p, takes := values[name]
		switch {
		case !takes:
		case joined && p != nil:
			*p = value
		case !joined:
			if i++; i < len(args) && p != nil {
				*p = args[i]
			}
		}
	}
	return "", where
}

// asksEngine reports whether the command of that name calls the engine, whatever its flags are.
func asksEngine(word string) bool {
	return !slices.Contains([]string{"", "up", "down", "check", "login", "logout", "help", "completion"}, word) && !strings.HasPrefix(word, "__")
}

// rootCommand makes the command tree. With the word of a top-level command it makes that one only: a hundred commands
// with all their flags take longer to make than the engine takes to answer.
func (a *app) rootCommand(word string) *cobra.Command {
	c := &cobra.Command{
		Use:           "berth",
		Short:         "Run and manage containers",
		Long:          longHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       clientVersion(),
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		},
	}
	c.SetVersionTemplate("Berth version {{.Version}}\n")
	c.SetFlagErrorFunc(flagError)
	c.SetOut(os.Stdout)
	c.SetErr(os.Stderr)
	p := c.PersistentFlags()
	p.StringVarP(&a.host, "host", "H", "", "engine to talk to (default $BERTH_HOST or unix://$BERTH_RUN/apid.sock)")
	p.StringVar(&a.root, "root", envOr("BERTH_ROOT", "/var/lib/berth"), "state directory, for up and check")
	p.StringVar(&a.run, "run", defaultRun(), "runtime directory of the instance")
	p.StringVar(&a.cfg, "config", os.Getenv("BERTH_CONFIG"), "configuration file of the daemons (default /etc/berth/berth.toml)")
	for _, g := range a.groups() {
		c.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
	}
	alone := a.commandFor(word)
	if alone != nil {
		c.CompletionOptions.DisableDefaultCmd = true
		c.AddCommand(alone)
	} else {
		for _, g := range a.groups() {
			for _, e := range g.commands {
				sub := e.make()
				sub.GroupID = g.id
				c.AddCommand(sub)
			}
		}
	}
	completeNames(a, c)
	return c
}

// commandFor makes the top-level command of that name, nil when there is none.
func (a *app) commandFor(word string) *cobra.Command {
	for _, g := range a.groups() {
		for _, e := range g.commands {
			if e.name == word {
				c := e.make()
				c.GroupID = g.id
				return c
			}
		}
	}
	return nil
}

// entry is a command that has not been made yet.
type entry struct {
	name string
	make func() *cobra.Command
}

type group struct {
	id, title string
	commands  []entry
}

// groups lists the commands: the short ones people type, and the same under their nouns.
func (a *app) groups() []group {
	return []group{
		{"containers", "Containers:", append(a.containerEntries(), entry{"ps", func() *cobra.Command { return a.psCommand("ps") }})},
		{"images", "Images:", []entry{
			{"pull", a.pullCommand}, {"push", a.pushCommand}, {"images", a.imagesCommand}, {"rmi", a.rmiCommand}, {"tag", a.tagCommand},
			{"save", a.saveCommand}, {"load", a.loadCommand}, {"import", a.importCommand}, {"history", a.historyCommand}, {"login", a.loginCommand}, {"logout", a.logoutCommand},
		}},
		{"engine", "Engine:", []entry{
			{"up", a.upCommand}, {"down", a.downCommand}, {"check", a.checkCommand}, {"info", a.infoCommand}, {"version", a.versionCommand},
			{"events", a.eventsCommand}, {"jobs", a.jobsCommand},
		}},
		{"nouns", "By noun:", []entry{
			{"container", a.containerNoun}, {"image", a.imageNoun}, {"manifest", a.manifestNoun}, {"artifact", a.artifactNoun}, {"registry", a.registryNoun}, {"network", a.networkNoun}, {"volume", a.volumeNoun}, {"system", a.systemNoun},
		}},
	}
}

// containerEntries are the commands that exist both at the top and under `berth container`.
func (a *app) containerEntries() []entry {
	return []entry{
		{"run", a.runCommand}, {"create", a.createCommand}, {"start", a.startCommand}, {"stop", a.stopCommand}, {"restart", a.restartCommand},
		{"kill", a.killCommand}, {"rm", a.rmCommand}, {"exec", a.execCommand}, {"attach", a.attachCommand}, {"logs", a.logsCommand},
		{"inspect", a.inspectCommand}, {"stats", a.statsCommand}, {"wait", a.waitCommand}, {"port", a.portCommand}, {"rename", a.renameCommand},
		{"pause", a.pauseCommand}, {"unpause", a.unpauseCommand}, {"top", a.topCommand}, {"update", a.updateCommand}, {"diff", a.diffCommand},
		{"commit", a.commitCommand}, {"export", a.exportCommand},
	}
}

func (a *app) containerNoun() *cobra.Command {
	c := noun("container", "Manage containers")
	for _, e := range a.containerEntries() {
		c.AddCommand(e.make())
	}
	ls := a.psCommand("ls")
	ls.Aliases = []string{"list", "ps"}
	c.AddCommand(ls, a.containerPruneCommand())
	return c
}

// noun makes a command that only groups others.
func noun(name, short string) *cobra.Command {
	return &cobra.Command{
		Use:   name,
		Short: short,
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		},
	}
}

func defaultRun() string { return envOr("BERTH_RUN", "/run/berth") }

func envOr(key, otherwise string) string {
	if v := os.Getenv(key); v != "" {
		return v
	}
	return otherwise
}

const longHelp = `Berth runs containers. Its words and flags are Docker's.

  berth run --rm -it debian bash          a shell in a throw-away container
  berth run -d -p 8080:80 --name web nginx
  berth logs -f web
  berth jobs                              what the engine does and has done
  berth check                             can this host run it, and what is missing`
