package tcti

import (
	"errors"
	"fmt"
	"io/fs"
)

var (
	// ErrNoTPM: there is no TPM where the address points, or it has gone.
	ErrNoTPM = errors.New("no TPM")
	// ErrTPM12: there is a TPM, but one of version 1.2, which cannot do any
	// of what is asked for.
	ErrTPM12 = errors.New("this TPM is of version 1.2; version 2.0 is needed")
	// ErrBusy: another program holds the TPM, and did not let go in time.
	ErrBusy = errors.New("the TPM is in use by another program")
)

// PermissionError says why the TPM's device may not be opened, and what would
// change that. It wraps fs.ErrPermission.
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
	s := fmt.Sprintf("no permission for %s (%s, owner %s, group %s): ", e.Path, e.Mode, e.Owner, e.Group)
	switch {
	case e.joinable && e.member:
		return s + fmt.Sprintf("%s is in the group %s since after this login: log out and in again", e.user, e.Group)
	case e.joinable:
		return s + fmt.Sprintf("join the group %s (sudo usermod -aG %s %s), then log out and in again", e.Group, e.Group, e.user)
	}
	return s + "no group may open it: an udev rule must give it one (distributions use the group tss and mode 0660)"
}

// Unwrap returns fs.ErrPermission.
func (e *PermissionError) Unwrap() error { return fs.ErrPermission }
