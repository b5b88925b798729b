// Berth is the command line of the Berth container engine: Docker's words and flags over the engine's gRPC API.
//
// Every command parses its flags, makes one or a few calls to apid, and renders the answer: results on stdout, all
// else on stderr. Exit codes are Docker's: 125 when the engine refused, 126 when the command in the container cannot
// be executed, 127 when it was not found, otherwise the container's own.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// app is what every command shares: where the engine is and where to write.
type app struct {
	host string // gRPC target of apid, "unix:///run/berth/apid.sock"
	root string // state directory of an instance, for up, down and check
	run  string // runtime directory of an instance
	cfg  string // configuration file handed to the daemons
}

func main() {
	os.Exit(execute(os.Args[1:]))
}

// execute runs one command line and returns its exit code.
func execute(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	a := &app{}
	root := a.rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	return report(os.Stderr, err)
}

// rootCommand lists the commands: the short ones people type, and the same under their nouns.
func (a *app) rootCommand() *cobra.Command {
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
	p.StringVar(&a.run, "run", envOr("BERTH_RUN", "/run/berth"), "runtime directory of the instance")
	p.StringVar(&a.cfg, "config", os.Getenv("BERTH_CONFIG"), "configuration file of the daemons (default /etc/berth/berth.toml)")

	c.AddGroup(
		&cobra.Group{ID: "containers", Title: "Containers:"},
		&cobra.Group{ID: "images", Title: "Images:"},
		&cobra.Group{ID: "engine", Title: "Engine:"},
		&cobra.Group{ID: "nouns", Title: "By noun:"},
	)
	add := func(group string, cs ...*cobra.Command) {
		for _, s := range cs {
			s.GroupID = group
			c.AddCommand(s)
		}
	}
	add("containers", a.containerCommands()...)
	add("images", a.pullCommand(), a.pushCommand(), a.imagesCommand(), a.rmiCommand(), a.tagCommand(), a.importCommand(),
		a.historyCommand(), a.loginCommand(), a.logoutCommand())
	add("engine", a.upCommand(), a.downCommand(), a.checkCommand(), a.infoCommand(), a.versionCommand(), a.eventsCommand(), a.jobsCommand())
	add("nouns", a.containerNoun(), a.imageNoun(), a.networkNoun(), a.volumeNoun(), a.systemNoun())
	completeNames(a, c)
	return c
}

// containerCommands are the commands that exist both at the top and under `berth container`.
func (a *app) containerCommands() []*cobra.Command {
	return []*cobra.Command{
		a.runCommand(), a.createCommand(), a.startCommand(), a.stopCommand(), a.restartCommand(), a.killCommand(),
		a.rmCommand(), a.psCommand("ps"), a.execCommand(), a.attachCommand(), a.logsCommand(), a.inspectCommand(),
		a.statsCommand(), a.waitCommand(), a.portCommand(), a.renameCommand(), a.pauseCommand(), a.unpauseCommand(),
		a.topCommand(), a.updateCommand(), a.diffCommand(),
	}
}

func (a *app) containerNoun() *cobra.Command {
	c := noun("container", "Manage containers")
	c.AddCommand(a.containerCommands()...)
	ls := a.psCommand("ls")
	ls.Aliases = []string{"list"}
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
