package tcti

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// system is where device nodes and their description by the kernel are found.
type system struct {
	dev string // /dev
	sys string // /sys
}

// thisSystem is the machine that we run on.
var thisSystem = system{dev: "/dev", sys: "/sys"}

// openAuto opens the TPM behind the kernel's resource manager. If there is none
// it looks for what is there instead, to say so; it never uses something else.
func (s system) openAuto(ctx context.Context) (wire, error) {
	path := filepath.Join(s.dev, "tpmrm0")
	w, err := s.openDevice(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.explainMissing(path)
	}
	return w, err
}

// explainMissing says why there is no /dev/tpmrm0.
func (s system) explainMissing(path string) error {
	if managers, _ := filepath.Glob(filepath.Join(s.dev, "tpmrm[0-9]*")); len(managers) > 0 {
		return fmt.Errorf("%w at %s, but there is %s: name it with device:%s", ErrNoTPM, path, managers[0], managers[0])
	}
	chips, _ := filepath.Glob(filepath.Join(s.sys, "class/tpm/tpm[0-9]*"))
	for _, chip := range chips {
		if tpm12(chip) {
			return fmt.Errorf("there is no %s: %s: %w", path, filepath.Base(chip), ErrTPM12)
		}
	}
	if raw, _ := filepath.Glob(filepath.Join(s.dev, "tpm[0-9]*")); len(raw) > 0 {
		return fmt.Errorf("%w at %s, only %s, which one program at a time can use: name it with device:%s",
			ErrNoTPM, path, raw[0], raw[0])
	}
	if len(chips) > 0 {
		return fmt.Errorf("%w at %s: the kernel has %s, but it has no device node (in a container it must be passed in)",
			ErrNoTPM, path, filepath.Base(chips[0]))
	}
	return fmt.Errorf("%w at %s: %w", ErrNoTPM, path, ErrNoChip)
}

// tpm12 reports whether the chip with that directory in /sys is a TPM 1.2.
func tpm12(chip string) bool {
	version, err := os.ReadFile(filepath.Join(chip, "tpm_version_major"))
	return err == nil && strings.TrimSpace(string(version)) == "1"
}

// openDevice opens a device node.
func (s system) openDevice(ctx context.Context, path string) (wire, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, s.openError(path, err)
	}
	// Looked at before it is opened: opening something else can block, or do
	// things.
	if info.Mode()&fs.ModeCharDevice == 0 {
		return nil, fmt.Errorf("%s is not a device", path)
	}
	fd, err := s.openPatiently(ctx, path)
	if err != nil {
		return nil, err
	}
	rm, err := s.examine(fd, path)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return newDevice(fd, rm)
}

// openPatiently opens path, and waits while another program has the raw device.
func (s system) openPatiently(ctx context.Context, path string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		fd, err := retry(func() (int, error) {
			return unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		})
		if err == nil {
			return fd, nil
		}
		if err != unix.EBUSY {
			return -1, s.openError(path, &fs.PathError{Op: "open", Path: path, Err: err})
		}
		if !sleep(ctx, pause) {
			return -1, fmt.Errorf("%s: %w; %s can be shared: %w", path, ErrBusy, filepath.Join(s.dev, "tpmrm0"), ctx.Err())
		}
	}
}

// examine looks up in /sys what an open device is: whether a resource manager
// (class tpmrm), and that it is no TPM 1.2. Names in /dev can be anything; they
// count only where /sys has nothing to say, as in some containers.
func (s system) examine(fd int, path string) (rm bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return false, fmt.Errorf("%s is not a device", path)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	node := filepath.Join(s.sys, "dev/char", number)
	if tpm12(node) {
		return false, fmt.Errorf("%s: %w", path, ErrTPM12)
	}
	class, err := os.Readlink(filepath.Join(node, "subsystem"))
	if err != nil {
		return strings.HasPrefix(filepath.Base(path), "tpmrm"), nil
	}
	return filepath.Base(class) == "tpmrm", nil
}

// openError sorts the reasons for which a device does not open.
func (s system) openError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return permissionError(path, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO), errors.Is(err, unix.EIO):
		return fmt.Errorf("%w there: %w", ErrNoTPM, err)
	}
	return err
}

// permissionError looks at the device for what the user needs to know. Who may
// not even look gets the plain error.
func permissionError(path string, err error) error {
	var st unix.Stat_t
	if statErr := unix.Stat(path, &st); statErr != nil {
		return err
	}
	info, statErr := os.Stat(path)
	if statErr != nil {
		return err
	}
	e := &PermissionError{
		Path:     path,
		Mode:     lsMode(info.Mode()),
		Owner:    strconv.Itoa(int(st.Uid)),
		Group:    strconv.Itoa(int(st.Gid)),
		joinable: st.Gid != 0 && st.Mode&0o060 == 0o060,
		user:     fmt.Sprintf("user %d", os.Getuid()),
	}
	if g, err := user.LookupGroupId(e.Group); err == nil {
		e.Group = g.Name
	}
	if u, err := user.LookupId(e.Owner); err == nil {
		e.Owner = u.Username
	}
	if u, err := user.Current(); err == nil {
		e.user = u.Username
		groups, _ := u.GroupIds()
		e.member = slices.Contains(groups, strconv.Itoa(int(st.Gid)))
	}
	return e
}

// lsMode writes a mode as ls -l does, for a character device.
func lsMode(m fs.FileMode) string {
	return "c" + m.Perm().String()[1:]
}
