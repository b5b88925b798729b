package manifest

import (
	"encoding/json"
	"strings"
	"time"

	"berth/services/imaged/store"

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
	if err := unambiguous(raw); err != nil {
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

// Fits makes sure that the configuration describes the layers of m.
func (c Config) Fits(m Manifest) error {
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return refused("configuration has %d layers, manifest %d", len(c.RootFS.DiffIDs), len(m.Layers))
	}
	return nil
}
