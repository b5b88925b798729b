package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/flags"
)

// manifestNoun has Docker's words: an index is drafted on this machine by create and annotate, and made by push.
func (a *app) manifestNoun() *cobra.Command {
	c := noun("manifest", "Manage images for several platforms")
	c.AddCommand(a.manifestInspectCommand(), a.manifestCreateCommand(), a.manifestAnnotateCommand(), a.manifestPushCommand(), a.manifestRemoveCommand())
	return c
}

// draft is an index that has not been pushed yet.
type draft struct {
	Name    string
	Sources []draftSource
}

type draftSource struct {
	Reference   string
	Platform    string            `json:",omitempty"`
	Annotations map[string]string `json:",omitempty"`
}

// draftFile is where the draft of an index is kept, in the caller's own configuration.
func draftFile(name string) (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("find the folder for drafts: %w", err)
	}
	return filepath.Join(dir, "berth", "manifests", url.QueryEscape(name)+".json"), nil
}

func readDraft(name string) (draft, error) {
	var d draft
	file, err := draftFile(name)
	if err != nil {
		return d, err
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return d, &userError{text: "no such manifest list: " + name, hint: "make one with: berth manifest create " + name + " IMAGE [IMAGE...]", code: 1}
	}
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal(b, &d); err != nil {
		return d, fmt.Errorf("read %s: %w", file, err)
	}
	return d, nil
}

func (d draft) write() error {
	file, err := draftFile(d.Name)
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	part := file + ".part"
	if err := os.WriteFile(part, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(part, file)
}

func (a *app) manifestInspectCommand() *cobra.Command {
	var platform string
	var verbose bool
	c := &cobra.Command{
		Use: "inspect [OPTIONS] NAME[:TAG|@DIGEST]", Short: "Show a manifest or index as its registry has it, or a draft", Args: needArgs(1, 1),
		Example: "  berth manifest inspect debian:bookworm\n  berth manifest inspect --platform linux/arm64 debian:bookworm",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			if d, err := readDraft(args[0]); err == nil && platform == "" {
				b, err := json.MarshalIndent(d, "", "   ")
				fmt.Fprintln(cmd.OutOrStdout(), string(b))
				return err
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.registries.GetManifest(cmd.Context(), &apiv1.RegistryServiceGetManifestRequest{Reference: args[0], Platform: platform, Auth: authFor(args[0])})
			if err != nil {
				return err
			}
			if verbose {
				fmt.Fprintf(cmd.ErrOrStderr(), "Digest: %s\nMediaType: %s\n", r.GetDigest(), r.GetMediaType())
			}
			var pretty bytes.Buffer
			if json.Indent(&pretty, r.GetRaw(), "", "   ") != nil {
				pretty.Write(r.GetRaw())
			}
			fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSpace(pretty.String()))
			return nil
		}),
	}
	c.Flags().StringVar(&platform, "platform", "", "of an index the manifest for this os/arch[/variant]")
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "digest and media type as well")
	return c
}

func (a *app) manifestCreateCommand() *cobra.Command {
	var amend bool
	c := &cobra.Command{
		Use: "create [OPTIONS] LIST IMAGE [IMAGE...]", Short: "Draft an index of images in registries", Args: needArgs(2, -1),
		Example: "  berth manifest create registry.example/web:1 registry.example/web:1-amd64 registry.example/web:1-arm64\n  berth manifest push registry.example/web:1",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			d, err := readDraft(args[0])
			if err == nil && !amend {
				return &userError{text: "there is a draft of " + args[0], hint: "add to it with --amend, or drop it with: berth manifest rm " + args[0], code: 1}
			}
			d.Name = args[0]
			for _, image := range args[1:] {
				// By digest, so that what is pushed is what was seen now.
				r, err := e.registries.GetManifest(cmd.Context(), &apiv1.RegistryServiceGetManifestRequest{Reference: image, Auth: authFor(image)})
				if err != nil {
					return err
				}
				fixed := repositoryOf(image) + "@" + r.GetDigest()
				if !slices.ContainsFunc(d.Sources, func(s draftSource) bool { return s.Reference == fixed }) {
					d.Sources = append(d.Sources, draftSource{Reference: fixed})
				}
			}
			if err := d.write(); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Created manifest list "+args[0])
			return nil
		}),
	}
	c.Flags().BoolVarP(&amend, "amend", "a", false, "add to the draft there is")
	return c
}

// repositoryOf is a reference without tag and digest.
func repositoryOf(reference string) string {
	name, _, _ := strings.Cut(reference, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	return name
}

func (a *app) manifestAnnotateCommand() *cobra.Command {
	var system, arch, variant string
	var annotations []string
	c := &cobra.Command{
		Use: "annotate [OPTIONS] LIST IMAGE", Short: "Say what an image of a draft is for", Args: needArgs(2, 2),
		Example: "  berth manifest annotate --arch arm --variant v7 registry.example/web:1 registry.example/web:1-arm",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			if (variant != "" || system != "") && arch == "" {
				return usagef("", "--os and --variant need --arch")
			}
			d, err := readDraft(args[0])
			if err != nil {
				return err
			}
			image := args[1]
			if !strings.Contains(image, "@") {
				e, err := a.connect()
				if err != nil {
					return err
				}
				defer e.Close()
				r, err := e.registries.GetManifest(cmd.Context(), &apiv1.RegistryServiceGetManifestRequest{Reference: image, Auth: authFor(image)})
				if err != nil {
					return err
				}
				image = repositoryOf(image) + "@" + r.GetDigest()
			}
			i := slices.IndexFunc(d.Sources, func(s draftSource) bool { return s.Reference == image })
			if i < 0 {
				return &userError{text: args[1] + " is not part of " + args[0], hint: "see: berth manifest inspect " + args[0], code: 1}
			}
			if arch != "" {
				if system == "" {
					system = "linux"
				}
				d.Sources[i].Platform = strings.TrimSuffix(system+"/"+arch+"/"+variant, "/")
			}
			for _, pair := range annotations {
				key, value, ok := strings.Cut(pair, "=")
				if !ok || key == "" {
					return usagef("", "annotation %q is not KEY=VALUE", pair)
				}
				if d.Sources[i].Annotations == nil {
					d.Sources[i].Annotations = map[string]string{}
				}
				d.Sources[i].Annotations[key] = value
			}
			return d.write()
		}),
	}
	f := c.Flags()
	f.StringVar(&system, "os", "", "operating system, linux if not given")
	f.StringVar(&arch, "arch", "", "architecture, such as arm64")
	f.StringVar(&variant, "variant", "", "of the architecture, such as v7")
	flags.Array(f, &annotations, "annotation", "", "KEY=VALUE")
	return c
}

func (a *app) manifestPushCommand() *cobra.Command {
	var purge bool
	c := &cobra.Command{
		Use: "push [OPTIONS] LIST", Short: "Make the index of a draft in its registry", Args: needArgs(1, 1),
		Example: "  berth manifest push --purge registry.example/web:1",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			d, err := readDraft(args[0])
			if err != nil {
				return err
			}
			req := &apiv1.RegistryServiceCreateIndexRequest{Reference: d.Name, Auth: authFor(d.Name)}
			for _, s := range d.Sources {
				req.Sources = append(req.Sources, &apiv1.RegistryServiceCreateIndexRequest_Source{Reference: s.Reference, Auth: authFor(s.Reference), Platform: s.Platform, Annotations: s.Annotations})
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.registries.CreateIndex(cmd.Context(), req)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), r.GetDigest())
			if purge {
				return removeDraft(args[0])
			}
			return nil
		}),
	}
	c.Flags().BoolVarP(&purge, "purge", "p", false, "drop the draft afterwards")
	return c
}

func (a *app) manifestRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm LIST [LIST...]", Short: "Drop drafts", Args: needArgs(1, -1),
		Example: "  berth manifest rm registry.example/web:1",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			return each(cmd, args, func(name string) (string, error) {
				if _, err := readDraft(name); err != nil {
					return "", err
				}
				return name, removeDraft(name)
			})
		}),
	}
}

func removeDraft(name string) error {
	file, err := draftFile(name)
	if err != nil {
		return err
	}
	return os.Remove(file)
}
