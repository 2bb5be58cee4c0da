package tcti

import (
	"errors"
	"fmt"
	"io/fs"
)

var (
	// ErrNoTPM: there is no TPM where the address points, or it has gone.
	ErrNoTPM = errors.New("no TPM")
	// ErrNoChip: this machine has no TPM that its kernel knows of. It comes with
	// ErrNoTPM.
	ErrNoChip = errors.New("the kernel knows of none")
	// ErrTPM12: there is a TPM, but one of version 1.2, which cannot do any
	// of what is asked for.
	ErrTPM12 = errors.New("this TPM is of version 1.2; version 2.0 is needed")
	// ErrBusy: another program holds the TPM, and did not let go in time.
	ErrBusy = errors.New("the TPM is in use by another program")
)

// PermissionError says why the TPM's device may not be opened; Advice says what
// would change that. It wraps fs.ErrPermission.
type PermissionError struct {
	Path  string // the device
	Mode  string // as ls -l shows it: crw-rw----
	Owner string // user name, or number when it has no name
	Group string // group name, or number when it has no name

	joinable bool // the group may open the device, and is not root's
	member   bool // the user database has us in that group already
	user     string
}

func (e *PermissionError) Error() string {
	why := "no group may open it"
	switch {
	case e.joinable && e.member:
		why = fmt.Sprintf("%s is in the group %s, but this login began before that", e.user, e.Group)
	case e.joinable:
		why = fmt.Sprintf("%s is not in the group %s", e.user, e.Group)
	}
	return fmt.Sprintf("no permission for %s (%s, owner %s, group %s): %s", e.Path, e.Mode, e.Owner, e.Group, why)
}

// Advice is what the user, or an administrator, has to do.
func (e *PermissionError) Advice() string {
	switch {
	case e.joinable && e.member:
		return "log out and in again; a systemd --user that goes on running keeps the old groups"
	case e.joinable:
		return fmt.Sprintf(`sudo usermod -aG %s "$USER", then log out and in again`, e.Group)
	}
	return "an udev rule has to give it a group: the package tpm-udev (or tpm2-tss) has one, for the group tss"
}

// Unwrap returns fs.ErrPermission.
func (e *PermissionError) Unwrap() error { return fs.ErrPermission }
