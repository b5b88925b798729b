package seccomp

import (
	"sync"

	"berth/libcontainer/caps"
)

// maxCached bounds a Cache. A daemon sees a handful of profiles and capability
// sets; more means that somebody tries them all, and the cache starts anew.
const maxCached = 256

// Cache keeps compiled programs by profile and target. Its zero value is empty
// and ready; it may be used from several goroutines. Profiles are told apart by
// their address, and must not change once they were compiled.
type Cache struct {
	mu       sync.Mutex
	programs map[cacheKey][]byte
}

type cacheKey struct {
	profile *Profile
	caps    caps.Set // only those that matter to the profile
	arch    Arch
	kernel  Version
	noX32   bool
}

// Compile is Profile.Compile, done once. The program is shared: read only.
func (c *Cache) Compile(p *Profile, t Target) ([]byte, error) {
	key := cacheKey{p, t.Caps & p.capsThatMatter(), t.Arch, t.Kernel, t.NoX32}
	c.mu.Lock()
	defer c.mu.Unlock()
	if program, ok := c.programs[key]; ok {
		return program, nil
	}
	program, err := p.Compile(t)
	if err != nil {
		return nil, err
	}
	if c.programs == nil || len(c.programs) >= maxCached {
		c.programs = make(map[cacheKey][]byte)
	}
	c.programs[key] = program
	return program, nil
}
