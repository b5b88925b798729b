package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"berth/cli/apiv1"
	"berth/cli/credentials"
)

// helperTime bounds a credential helper: it may ask a key ring, not a person.
const helperTime = 30 * time.Second

// authFor finds the login for the registry an image reference names; nil when there is none. A broken helper is worth
// a warning only: public images need no login.
func authFor(reference string) *apiv1.RegistryAuth {
	store, err := credentials.Default()
	if err != nil {
		return nil
	}
	registry, repository := registryOf(reference), repositoryOf(reference)
	if path, ok := strings.CutPrefix(repository, registry+"/"); ok {
		repository = path
	}
	ctx, cancel := context.WithTimeout(context.Background(), helperTime)
	defer cancel()
	login, err := store.Get(ctx, registry+"/"+repository)
	if err != nil {
		fmt.Fprintf(os.Stderr, "warning: login for %s: %v\n", registry, err)
		return nil
	}
	if login.Anonymous() {
		return nil
	}
	return &apiv1.RegistryAuth{Registry: registry, Username: login.Username, Password: login.Password, IdentityToken: login.IdentityToken, RegistryToken: login.RegistryToken}
}

// registryOf is the registry part of a reference by Docker's rule: the first component is a host when it has a dot or
// a colon, or is localhost; otherwise the image is Docker Hub's.
func registryOf(reference string) string {
	first, _, ok := strings.Cut(reference, "/")
	if !ok || !strings.ContainsAny(first, ".:") && first != "localhost" || first == "index.docker.io" {
		return "docker.io"
	}
	return first
}

func (a *app) loginCommand() *cobra.Command {
	var user, password string
	var fromStdin bool
	c := &cobra.Command{
		Use: "login [OPTIONS] [REGISTRY[/PATH]]", Short: "Log in to a registry", Args: needArgs(0, 1),
		Example: "  berth login -u alice registry.example\n  pass registry | berth login -u alice --password-stdin registry.example\n  berth login -u team registry.example/team   for the repositories below that path",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			registry := "docker.io"
			if len(args) == 1 {
				registry = strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(args[0], "https://"), "http://"), "/")
			}
			if fromStdin && password != "" {
				return usagef("", "--password and --password-stdin do not go together")
			}
			if err := askLogin(cmd, &user, &password, fromStdin); err != nil {
				return err
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			host, _, _ := strings.Cut(registry, "/")
			r, err := e.images.Login(cmd.Context(), &apiv1.ImageServiceLoginRequest{Auth: &apiv1.RegistryAuth{Registry: host, Username: user, Password: password}})
			if err != nil {
				return err
			}
			store, err := credentials.Default()
			if err != nil {
				return err
			}
			login := credentials.Login{Username: user, Password: password}
			if t := r.GetIdentityToken(); t != "" {
				login.Password, login.IdentityToken = "", t
			}
			where, err := store.Put(cmd.Context(), registry, login)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "The login is kept in %s.\n", where)
			fmt.Fprintln(cmd.OutOrStdout(), "Login Succeeded")
			return nil
		}),
	}
	c.Flags().StringVarP(&user, "username", "u", "", "user name")
	c.Flags().StringVarP(&password, "password", "p", "", "password (seen by other users of this host; better --password-stdin)")
	c.Flags().BoolVar(&fromStdin, "password-stdin", false, "read the password from standard input")
	return c
}

// askLogin asks the terminal for what the flags do not say.
func askLogin(cmd *cobra.Command, user, password *string, fromStdin bool) error {
	if *user == "" {
		if fromStdin || !term.IsTerminal(int(os.Stdin.Fd())) {
			return usagef("give --username", "no user name, and standard input is not a terminal")
		}
		fmt.Fprint(cmd.ErrOrStderr(), "Username: ")
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if err != nil {
			return usagef("", "read the user name: %v", err)
		}
		*user = strings.TrimSpace(line)
	}
	if *password != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: other users of this host can read --password; use --password-stdin")
		return nil
	}
	if fromStdin {
		b, err := io.ReadAll(io.LimitReader(os.Stdin, 64<<10))
		*password = strings.TrimRight(string(b), "\r\n")
		return err
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return usagef("pipe it to `berth login --password-stdin`", "no password, and standard input is not a terminal")
	}
	fmt.Fprint(cmd.ErrOrStderr(), "Password: ")
	b, err := term.ReadPassword(int(os.Stdin.Fd()))
	fmt.Fprintln(cmd.ErrOrStderr())
	*password = string(b)
	return err
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use: "logout [REGISTRY]", Short: "Forget the login of a registry", Args: needArgs(0, 1), Example: "  berth logout registry.example",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			registry := "docker.io"
			if len(args) == 1 {
				registry = args[0]
			}
			store, err := credentials.Default()
			if err != nil {
				return err
			}
			found, elsewhere, err := store.Delete(cmd.Context(), registry)
			if err != nil {
				return err
			}
			if elsewhere != "" {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s still has a login for %s\n", elsewhere, registry)
			}
			if !found {
				fmt.Fprintf(cmd.OutOrStdout(), "Not logged in to %s\n", registry)
				return nil
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Removing login credentials for %s\n", registry)
			return nil
		}),
	}
}
