package manifest

import (
	"encoding/json"
	"reflect"
	"strings"
	"time"

	"berth/internal/fault"
	"berth/services/imaged/store"
	"berth/services/imaged/strictjson"

	"github.com/opencontainers/go-digest"
)

// Config is an image's configuration, as far as the engine reads it. It is the
// document whose digest is the image's id.
type Config struct {
	Created      *time.Time `json:"created,omitempty"`
	Author       string     `json:"author,omitempty"`
	Architecture string     `json:"architecture"`
	OS           string     `json:"os"`
	Variant      string     `json:"variant,omitempty"`
	Config       Process    `json:"config"`
	RootFS       RootFS     `json:"rootfs"`
	History      []History  `json:"history,omitempty"`
}

// Process is what an image says about how to run it. Shell is Docker's.
type Process struct {
	User         string              `json:"User,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	Volumes      map[string]struct{} `json:"Volumes,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	Labels       map[string]string   `json:"Labels,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
	Shell        []string            `json:"Shell,omitempty"`
}

// RootFS lists the digests of the uncompressed layers, bottom first.
type RootFS struct {
	Type    string          `json:"type"` // "layers"
	DiffIDs []digest.Digest `json:"diff_ids"`
}

// History is how one layer, or a change without one, was made.
type History struct {
	Created    *time.Time `json:"created,omitempty"`
	CreatedBy  string     `json:"created_by,omitempty"`
	Author     string     `json:"author,omitempty"`
	Comment    string     `json:"comment,omitempty"`
	EmptyLayer bool       `json:"empty_layer,omitempty"`
}

// ReservedLabel starts the labels that the engine gives meaning to. An image's
// own are dropped: what an image says never steers the engine (regression S-18).
const ReservedLabel = "berth."

// ParseConfig reads a configuration.
func ParseConfig(raw []byte) (Config, error) {
	if len(raw) > MaxBytes {
		return Config{}, refused("configuration has %d bytes, more than %d", len(raw), MaxBytes)
	}
	if err := strictjson.Check(raw); err != nil {
		return Config{}, refused("configuration: %v", err)
	}
	var c Config
	if err := json.Unmarshal(raw, &c); err != nil {
		return Config{}, refused("configuration: %v", err)
	}
	if c.RootFS.Type != "layers" {
		return Config{}, refused("configuration has a root file system of type %q", c.RootFS.Type)
	}
	if len(c.RootFS.DiffIDs) > MaxLayers {
		return Config{}, refused("configuration has %d layers", len(c.RootFS.DiffIDs))
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := store.Check(d); err != nil {
			return Config{}, refused("configuration: %v", err)
		}
	}
	for label := range c.Config.Labels {
		if strings.HasPrefix(label, ReservedLabel) {
			delete(c.Config.Labels, label)
		}
	}
	return c, nil
}

// Holds makes sure that layer n, which came as blob, contains what the configuration says: diffID. Where that is a digest
// of another kind, content computes the contents' of this kind.
func (c Config) Holds(n int, blob, diffID digest.Digest, content func(digest.Algorithm) (digest.Digest, error)) error {
	want := c.RootFS.DiffIDs[n]
	if want.Algorithm() != diffID.Algorithm() {
		var err error
		if diffID, err = content(want.Algorithm()); err != nil {
			return err
		}
	}
	if want == diffID {
		return nil
	}
	return fault.DataLoss.Errorf("DIGEST_MISMATCH", "layer %s contains %s, but the image says %s", blob, diffID, want).With("digest", blob.String())
}

// Fits makes sure that the configuration describes the layers of m.
func (c Config) Fits(m Manifest) error {
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return refused("configuration has %d layers, manifest %d", len(c.RootFS.DiffIDs), len(m.Layers))
	}
	return nil
}

// stale are fields of a configuration that speak of how its own image was made.
var stale = []string{"container", "container_config", "docker_version", "id", "parent"}

// Derive makes the configuration of an image made of another: base is the
// other's, c what is different. Fields that this package does not know, such as
// health checks, stay as they are.
func Derive(base []byte, c Config) ([]byte, error) {
	doc, err := overlay(base, c)
	if err != nil {
		return nil, err
	}
	for _, key := range stale {
		delete(doc, key)
	}
	var was struct{ Config json.RawMessage }
	if err := json.Unmarshal(base, &was); err != nil {
		return nil, err
	}
	process, err := overlay(was.Config, c.Config)
	if err != nil {
		return nil, err
	}
	if doc["config"], err = json.Marshal(process); err != nil {
		return nil, err
	}
	return json.Marshal(doc)
}

// overlay gives the fields of the JSON object base, with those of v's type taken
// from v.
func overlay(base []byte, v any) (map[string]json.RawMessage, error) {
	doc := map[string]json.RawMessage{}
	if len(base) > 0 && string(base) != "null" {
		if err := json.Unmarshal(base, &doc); err != nil {
			return nil, err
		}
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	ours := map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &ours); err != nil {
		return nil, err
	}
	for t, i := reflect.TypeOf(v), 0; i < t.NumField(); i++ {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		for key := range doc {
			if strings.EqualFold(key, name) { // as decoding takes it for ours
				delete(doc, key)
			}
		}
		if value, ok := ours[name]; ok {
			doc[name] = value
		}
	}
	return doc, nil
}
