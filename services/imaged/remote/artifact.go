package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"strings"

	"berth/internal/fault"
	"berth/services/imaged/manifest"
	"berth/services/imaged/registry"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// File is a file of an artifact.
type File struct {
	Name      string // base name
	MediaType string
	Size      int64
	// Open gives the content, for Push; it may be called again for a retry.
	Open   func() (io.ReadCloser, error)
	Digest digest.Digest
}

// Artifact is what Push makes.
type Artifact struct {
	Type        string
	Subject     reference.Named // in the same repository; nil for none
	Annotations map[string]string
	Files       []File
}

// Push stores an artifact as to, or by digest alone if to has no tag. It returns the digest of its manifest.
func (m *Remote) Push(ctx context.Context, to Place, a Artifact) (digest.Digest, error) {
	if err := validate(a); err != nil {
		return "", err
	}
	doc := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: a.Type, Config: ocispec.DescriptorEmptyJSON, Annotations: a.Annotations,
		Layers: []ocispec.Descriptor{}}
	doc.SchemaVersion = 2
	if a.Subject != nil {
		subject, err := m.Registry.Resolve(ctx, a.Subject, to.Auth)
		if err != nil {
			return "", err
		}
		doc.Subject = &ocispec.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size}
	}
	empty := func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(ocispec.DescriptorEmptyJSON.Data)), nil
	}
	doc.Config.Data = nil
	if _, err := m.Registry.PushBlob(ctx, to.repository(), doc.Config, empty, "", to.Auth, nil); err != nil {
		return "", err
	}
	for _, f := range a.Files {
		d := ocispec.Descriptor{MediaType: f.MediaType, Digest: f.Digest, Size: f.Size, Annotations: map[string]string{ocispec.AnnotationTitle: f.Name}}
		if _, err := m.Registry.PushBlob(ctx, to.repository(), d, f.Open, "", to.Auth, nil); err != nil {
			return "", err
		}
		doc.Layers = append(doc.Layers, d)
	}
	return m.pushArtifact(ctx, to, doc)
}

func (m *Remote) pushArtifact(ctx context.Context, to Place, doc ocispec.Manifest) (digest.Digest, error) {
	raw, err := json.Marshal(doc)
	if err != nil {
		return "", err
	}
	desc := ocispec.Descriptor{MediaType: doc.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw)), ArtifactType: doc.ArtifactType, Annotations: doc.Annotations}
	if _, tagged := to.Name.(reference.Tagged); !tagged {
		if to, err = to.at(desc.Digest); err != nil {
			return "", err
		}
	}
	if doc.Subject != nil {
		return desc.Digest, m.Registry.PushReferrer(ctx, to.Name, raw, doc.Subject.Digest, desc, to.Auth)
	}
	return m.Registry.PushManifest(ctx, to.Name, doc.MediaType, raw, to.Auth)
}

func validate(a Artifact) error {
	if !strings.Contains(a.Type, "/") || strings.ContainsAny(a.Type, " \t\r\n") {
		return fault.InvalidArgument.Errorf("BAD_ARTIFACT_TYPE", "artifact type %q is not a media type such as application/vnd.example.sbom", a.Type)
	}
	for _, f := range a.Files {
		if !validName(f.Name) {
			return fault.InvalidArgument.Errorf("BAD_FILE_NAME", "%q cannot be the name of a file in an artifact", f.Name)
		}
	}
	return nil
}

// validName keeps names from leading out of the directory that somebody unpacks an artifact to.
func validName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 255 && !strings.ContainsAny(name, "/\\\x00\n\r")
}

// Files fetches the manifest of an artifact and gives its files, whose content Read copies. A file without a name of its
// own is called by its digest.
func (m *Remote) Files(ctx context.Context, from Place) ([]File, error) {
	doc, err := m.fetch(ctx, from)
	if err != nil {
		return nil, err
	}
	if registry.IsIndex(doc.MediaType) {
		return nil, fault.InvalidArgument.Errorf("NOT_AN_ARTIFACT", "%s is an index; name one of its manifests", from.Name)
	}
	var parsed ocispec.Manifest
	if err := json.Unmarshal(doc.Raw, &parsed); err != nil {
		return nil, fault.DataLoss.Errorf("BAD_ARTIFACT", "artifact refused: manifest: %v", err)
	}
	if len(parsed.Layers) > manifest.MaxLayers {
		return nil, fault.DataLoss.Errorf("BAD_ARTIFACT", "artifact refused: it has %d files", len(parsed.Layers))
	}
	var files []File
	seen := map[string]bool{}
	for _, l := range parsed.Layers {
		if l.Digest.Validate() != nil {
			return nil, fault.DataLoss.Errorf("BAD_ARTIFACT", "artifact refused: malformed digest")
		}
		name := l.Annotations[ocispec.AnnotationTitle]
		if name == "" {
			name = l.Digest.Encoded()
		}
		if !validName(name) || seen[name] {
			return nil, fault.DataLoss.Errorf("BAD_ARTIFACT", "artifact refused: %q is no name for a file, or occurs twice", name)
		}
		seen[name] = true
		files = append(files, File{Name: name, MediaType: l.MediaType, Size: l.Size, Digest: l.Digest})
	}
	return files, nil
}

// Read copies the content of a file to w. What was written is verified when it returns.
func (m *Remote) Read(ctx context.Context, from Place, f File, w io.Writer) error {
	c := m.newCopier(CopyRequest{From: from, To: from})
	body, err := c.source(ctx, ocispec.Descriptor{MediaType: f.MediaType, Digest: f.Digest, Size: f.Size})
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(w, body)
	return err
}

// Spooled receives a file for Push on the disk, as its digest must be known before it is sent. Remove it in the end.
type Spooled struct {
	file *os.File
	hash digest.Digester
	size int64
}

// NewSpooled makes one in dir.
func NewSpooled(dir string) (*Spooled, error) {
	f, err := os.CreateTemp(dir, "artifact-")
	if err != nil {
		return nil, err
	}
	return &Spooled{file: f, hash: digest.SHA256.Digester()}, nil
}

func (s *Spooled) Write(p []byte) (int, error) {
	n, err := s.file.Write(p)
	s.hash.Hash().Write(p[:n])
	s.size += int64(n)
	return n, err
}

// File describes what was written.
func (s *Spooled) File(name, mediaType string) File {
	return File{Name: name, MediaType: mediaType, Size: s.size, Digest: s.hash.Digest(), Open: func() (io.ReadCloser, error) { return os.Open(s.file.Name()) }}
}

// Remove deletes it.
func (s *Spooled) Remove() {
	s.file.Close()
	os.Remove(s.file.Name())
}
