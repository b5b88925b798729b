package launch

import (
	"bytes"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"berth/internal/fault"
	"berth/libcontainer"
	"berth/libcontainer/caps"
	apiv1 "berth/proto/berth/api/v1"
)

// security fills in what a command may do.
func (b *Builder) security(s *apiv1.Security, c *libcontainer.Command) error {
	set, err := b.capabilities(s)
	if err != nil {
		return err
	}
	c.Caps = set
	c.NoNewPrivs = s.GetNoNewPrivileges()
	profile := s.GetSeccompProfile()
	if s.GetPrivileged() && profile == "" {
		profile = "unconfined"
	}
	if c.Seccomp, err = b.seccomp(profile, set); err != nil {
		return fault.InvalidArgument.Errorf("SECCOMP", "seccomp profile: %w", err)
	}
	if c.AppArmor, err = apparmor(s.GetApparmorProfile()); err != nil {
		return err
	}
	c.SELinux, err = selinux(s.GetSelinuxLabel())
	return err
}

func (b *Builder) capabilities(s *apiv1.Security) (caps.Set, error) {
	all := b.bounding
	base := b.Capabilities
	if s.GetPrivileged() {
		base = all
	}
	set, err := caps.Adjust(base, all, s.GetCapAdd(), s.GetCapDrop())
	var unknown caps.UnknownError
	switch {
	case errors.As(err, &unknown):
		return 0, fault.InvalidArgument.Errorf("CAPABILITY", "%w", err)
	case err != nil:
		return 0, fault.FailedPrecondition.Errorf("CAPABILITY", "%w", err)
	}
	return set, nil
}

// apparmor is the profile to change to. A profile that was asked for and cannot
// be had is an error: it would be a fence that is not there.
func apparmor(profile string) (string, error) {
	switch profile {
	case "", "unconfined":
		return "", nil
	}
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if err != nil || !bytes.HasPrefix(enabled, []byte("Y")) {
		return "", fault.FailedPrecondition.Errorf("APPARMOR", "AppArmor profile %q was asked for, but this host has no AppArmor", profile)
	}
	return profile, nil
}

// selinux is the context to change to: options like Docker's "type:container_t"
// are joined over the usual one.
func selinux(options []string) (string, error) {
	if len(options) == 0 || (len(options) == 1 && options[0] == "disable") {
		return "", nil
	}
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/selinux", &st) != nil || st.Type != unix.SELINUX_MAGIC {
		return "", fault.FailedPrecondition.Errorf("SELINUX", "an SELinux label was asked for, but this host has no SELinux")
	}
	label := map[string]string{"user": "system_u", "role": "system_r", "type": "container_t", "level": "s0"}
	for _, o := range options {
		key, value, ok := bytes.Cut([]byte(o), []byte(":"))
		if _, known := label[string(key)]; !ok || !known {
			return "", refuse("SELINUX", "SELinux option %q: want user:, role:, type: or level:", o)
		}
		label[string(key)] = string(value)
	}
	return label["user"] + ":" + label["role"] + ":" + label["type"] + ":" + label["level"], nil
}
