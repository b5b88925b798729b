package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/flags"
	"berth/cli/format"
)

// artifactNoun groups what handles files in registries: SBOMs, signatures, charts.
func (a *app) artifactNoun() *cobra.Command {
	c := noun("artifact", "Manage OCI artifacts: files in registries")
	c.AddCommand(a.artifactPushCommand(), a.artifactPullCommand(), a.artifactListCommand())
	return c
}

func (a *app) artifactPushCommand() *cobra.Command {
	h := &apiv1.RegistryServicePushArtifactRequest_Header{}
	var annotations []string
	c := &cobra.Command{
		Use: "push [OPTIONS] NAME[:TAG] [FILE[:TYPE]...]", Short: "Push files as an artifact", Args: needArgs(1, -1),
		Example: "  berth artifact push --type application/vnd.example.config registry.example/config:1 app.toml:application/toml\n" +
			"  berth artifact push --type application/spdx+json --subject registry.example/web:1 registry.example/web sbom.json",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			h.Reference, h.Auth = args[0], authFor(args[0])
			for _, pair := range annotations {
				key, value, ok := strings.Cut(pair, "=")
				if !ok || key == "" {
					return usagef("", "annotation %q is not KEY=VALUE", pair)
				}
				if h.Annotations == nil {
					h.Annotations = map[string]string{}
				}
				h.Annotations[key] = value
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			stream, err := e.registries.PushArtifact(ctx)
			if err != nil {
				return err
			}
			send := func(m *apiv1.RegistryServicePushArtifactRequest) bool { return stream.Send(m) == nil }
			ok := send(&apiv1.RegistryServicePushArtifactRequest{Message: &apiv1.RegistryServicePushArtifactRequest_Header_{Header: h}})
			for _, arg := range args[1:] {
				if ok { // otherwise Recv has the reason
					if ok, err = sendFile(arg, send); err != nil {
						return err
					}
				}
			}
			stream.CloseSend()
			r, err := stream.Recv()
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), r.GetReference())
			return nil
		}),
	}
	f := c.Flags()
	f.StringVar(&h.ArtifactType, "type", "application/vnd.unknown.artifact.v1", "media type of the artifact")
	f.StringVar(&h.Subject, "subject", "", "image that the artifact is about, in the same repository")
	flags.Array(f, &annotations, "annotation", "", "KEY=VALUE")
	return c
}

// sendFile sends "FILE[:TYPE]". It reports whether the engine still listens.
func sendFile(arg string, send func(*apiv1.RegistryServicePushArtifactRequest) bool) (bool, error) {
	name, mediaType := arg, ""
	if i := strings.LastIndexByte(arg, ':'); i > 0 && strings.Contains(arg[i:], "/") {
		name, mediaType = arg[:i], arg[i+1:]
	}
	in, err := openFile(name)
	if err != nil {
		return false, err
	}
	defer in.Close()
	about := &apiv1.ArtifactFile{Name: filepath.Base(name), MediaType: mediaType}
	if !send(&apiv1.RegistryServicePushArtifactRequest{Message: &apiv1.RegistryServicePushArtifactRequest_File{File: about}}) {
		return false, nil
	}
	buf := make([]byte, importChunk)
	for {
		n, err := in.Read(buf)
		if n > 0 && !send(&apiv1.RegistryServicePushArtifactRequest{Message: &apiv1.RegistryServicePushArtifactRequest_Data{Data: buf[:n]}}) {
			return false, nil
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

func (a *app) artifactPullCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "pull [OPTIONS] NAME[:TAG|@DIGEST]", Short: "Fetch the files of an artifact", Args: needArgs(1, 1),
		Example: "  berth artifact pull -o . registry.example/config:1",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			stream, err := e.registries.PullArtifact(cmd.Context(), &apiv1.RegistryServicePullArtifactRequest{Reference: args[0], Auth: authFor(args[0])})
			if err != nil {
				return err
			}
			return receiveFiles(stream.Recv, dir, cmd.OutOrStdout())
		}),
	}
	c.Flags().StringVarP(&dir, "output", "o", ".", "directory for the files")
	return c
}

// receiveFiles writes the files of an artifact into dir. A file gets its name when all of it has come and was verified;
// what is there is not overwritten.
func receiveFiles(recv func() (*apiv1.RegistryServicePullArtifactResponse, error), dir string, out io.Writer) error {
	var part *os.File
	var name string
	defer func() {
		if part != nil {
			part.Close()
			os.Remove(part.Name())
		}
	}()
	finish := func() error {
		if part == nil {
			return nil
		}
		// Link refuses to overwrite, rename does not.
		err := errors.Join(part.Chmod(0o644), part.Close(), os.Link(part.Name(), filepath.Join(dir, name)), os.Remove(part.Name()))
		if err == nil {
			fmt.Fprintln(out, filepath.Join(dir, name))
			part = nil
		}
		return err
	}
	for {
		m, err := recv()
		if errors.Is(err, io.EOF) {
			return finish()
		}
		if err != nil {
			return err
		}
		if about := m.GetFile(); about != nil {
			if err := finish(); err != nil {
				return err
			}
			name = about.GetName()
			if name != filepath.Base(name) || name == "." || name == ".." || name == "/" {
				return fmt.Errorf("the engine sent %q as a file's name", name)
			}
			if part, err = os.CreateTemp(dir, ".berth-artifact-"); err != nil {
				return err
			}
			continue
		}
		if part == nil {
			return errors.New("the engine sent data without a file's name")
		}
		if _, err := part.Write(m.GetData()); err != nil {
			return err
		}
	}
}

func (a *app) artifactListCommand() *cobra.Command {
	var layout, artifactType string
	c := &cobra.Command{
		Use: "ls [OPTIONS] NAME[:TAG|@DIGEST]", Aliases: []string{"list", "referrers"}, Short: "List what refers to an image: signatures, SBOMs and others", Args: needArgs(1, 1),
		Example: "  berth artifact ls registry.example/web:1",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.registries.ListReferrers(cmd.Context(), &apiv1.RegistryServiceListReferrersRequest{Reference: args[0], Auth: authFor(args[0]), ArtifactType: artifactType})
			if err != nil {
				return err
			}
			type row struct {
				Digest       string
				ArtifactType string `header:"ARTIFACT TYPE"`
				Size         string
				Annotations  map[string]string
			}
			var rows []row
			for _, d := range r.GetReferrers() {
				rows = append(rows, row{d.GetDigest(), d.GetArtifactType(), format.Bytes(d.GetSizeBytes()), d.GetAnnotations()})
			}
			return format.Rows(cmd.OutOrStdout(), layout, []string{"Digest", "ArtifactType", "Size"}, rows)
		}),
	}
	c.Flags().StringVar(&artifactType, "type", "", "only of this type")
	c.Flags().StringVar(&layout, "format", "", "table, json, or a template")
	return c
}
