package tcti

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"
)

var (
	// ErrNoTPM says that there is no TPM at the address, or not any more.
	ErrNoTPM = errors.New("no TPM")
	// ErrNoChip says that the kernel of this machine has found no TPM. It comes with
	// ErrNoTPM.
	ErrNoChip = errors.New("the kernel knows of none")
	// ErrTPM12 says that the TPM is of version 1.2, which cannot do what we need.
	ErrTPM12 = errors.New("this TPM is of version 1.2; version 2.0 is needed")
	// ErrBusy says that another program holds the TPM and did not release it in time.
	ErrBusy = errors.New("the TPM is in use by another program")
)

// PermissionError says why the TPM's device may not be opened. It wraps
// fs.ErrPermission.
type PermissionError struct {
	Path  string // the device
	Mode  string // as ls -l shows it: crw-rw----
	Owner string // user name, or number if it has no name
	Group string // group name, or number if it has no name

	joinable bool // the group may open the device, and a user can join it
	member   bool // the user database has us in that group
	root     bool // we are root
	user     string
}

// overflowGID stands for every group that does not exist in our user namespace.
const overflowGID = "65534"

// permissionError looks at the device to find the reason for err.
func permissionError(err *fs.PathError) error {
	info, statErr := os.Stat(err.Path)
	if statErr != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	uid, gid := strconv.Itoa(int(st.Uid)), strconv.Itoa(int(st.Gid))
	e := &PermissionError{
		Path:     err.Path,
		Mode:     "c" + info.Mode().Perm().String()[1:],
		Owner:    uid,
		Group:    gid,
		joinable: gid != "0" && gid != overflowGID && info.Mode()&0o060 == 0o060,
		root:     os.Geteuid() == 0,
		user:     fmt.Sprintf("user %d", os.Getuid()),
	}
	if g, err := user.LookupGroupId(gid); err == nil {
		e.Group = g.Name
	}
	if u, err := user.LookupId(uid); err == nil {
		e.Owner = u.Username
	}
	if u, err := user.Current(); err == nil {
		e.user = u.Username
		groups, _ := u.GroupIds()
		e.member = slices.Contains(groups, gid)
	}
	return e
}

func (e *PermissionError) Error() string {
	return fmt.Sprintf("no permission for %s (%s, owner %s, group %s): %s", e.Path, e.Mode, e.Owner, e.Group, e.why())
}

func (e *PermissionError) why() string {
	switch {
	case e.root:
		return "root is denied, as in a container or a service that has not been given the device"
	case e.joinable && e.member:
		return fmt.Sprintf("%s is in the group %s, but this login began before that", e.user, e.Group)
	case e.joinable:
		return fmt.Sprintf("%s is not in the group %s", e.user, e.Group)
	}
	return "no group that you could join may open it"
}

// Advice returns what the user or an administrator has to do.
func (e *PermissionError) Advice() string {
	switch {
	case e.root:
		return fmt.Sprintf("start the container with --device %s; a systemd service needs DeviceAllow=%s rw", e.Path, e.Path)
	case e.joinable && e.member:
		return "log out and in again; a running systemd --user keeps the old groups"
	case e.joinable:
		return fmt.Sprintf(`sudo usermod -aG %s "$USER", then log out and in again`, e.Group)
	}
	return "a udev rule must give it to a group: the package tpm-udev (or tpm2-tss) has one, for the group tss; for a container, install it on the host"
}

// Unwrap returns fs.ErrPermission.
func (e *PermissionError) Unwrap() error { return fs.ErrPermission }
