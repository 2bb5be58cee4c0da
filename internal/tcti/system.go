package tcti

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// system is where device nodes are, and what the kernel says about them.
type system struct {
	dev string // /dev
	sys string // /sys
}

// thisSystem is the machine that we run on.
var thisSystem = system{dev: "/dev", sys: "/sys"}

// openAuto opens the TPM behind the kernel's resource manager. If there is none, the
// error says what there is instead; openAuto never uses that.
func (s system) openAuto(ctx context.Context) (*Conn, error) {
	path := filepath.Join(s.dev, "tpmrm0")
	c, err := s.openDevice(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.explainMissing(path)
	}
	return c, err
}

// explainMissing returns an error that says why there is no /dev/tpmrm0.
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
		return fmt.Errorf("%w at %s: the kernel has %s, but it has no device node (a container must be given one)",
			ErrNoTPM, path, filepath.Base(chips[0]))
	}
	return fmt.Errorf("%w at %s: %w", ErrNoTPM, path, ErrNoChip)
}

// tpm12 reports whether the chip described in that directory of /sys is a TPM 1.2.
func tpm12(chip string) bool {
	version, err := os.ReadFile(filepath.Join(chip, "tpm_version_major"))
	return err == nil && strings.TrimSpace(string(version)) == "1"
}

// openDevice opens a device node.
func (s system) openDevice(ctx context.Context, path string) (*Conn, error) {
	// Check what it is before opening it: to open something else can block or have
	// effects.
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, openError(&fs.PathError{Op: "stat", Path: path, Err: err})
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return nil, fmt.Errorf("%s is not a device", path)
	}
	managed, err := s.examine(path, st.Rdev)
	if err != nil {
		return nil, err
	}
	fd, err := s.openPatiently(ctx, path)
	if err != nil {
		return nil, err
	}
	d, err := newDevice(fd)
	if err != nil {
		return nil, err
	}
	return &Conn{exchange: d.exchange, leave: d.hangUp, managed: managed, grace: closeGrace}, nil
}

// openPatiently opens path, and waits while another program has the raw device.
func (s system) openPatiently(ctx context.Context, path string) (int, error) {
	fd, err := patiently(ctx, unix.EBUSY, func(context.Context) (int, error) {
		return retry(func() (int, error) {
			return unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		})
	})
	switch {
	case errors.Is(err, unix.EBUSY):
		return -1, fmt.Errorf("%s: %w; %s can be shared: %w", path, ErrBusy, filepath.Join(s.dev, "tpmrm0"), err)
	case err != nil:
		return -1, openError(&fs.PathError{Op: "open", Path: path, Err: err})
	}
	return fd, nil
}

// examine looks up a device in /sys. It reports whether the device is a resource
// manager (class tpmrm), and refuses a TPM 1.2. The name in /dev counts only where /sys
// says nothing, as in some containers.
func (s system) examine(path string, number uint64) (managed bool, err error) {
	node := filepath.Join(s.sys, "dev/char", fmt.Sprintf("%d:%d", unix.Major(number), unix.Minor(number)))
	if tpm12(node) {
		return false, fmt.Errorf("%s: %w", path, ErrTPM12)
	}
	class, err := os.Readlink(filepath.Join(node, "subsystem"))
	if err != nil {
		return strings.HasPrefix(filepath.Base(path), "tpmrm"), nil
	}
	return filepath.Base(class) == "tpmrm", nil
}

// openError adds to an error of opening a device what it means.
func openError(err *fs.PathError) error {
	if errors.Is(err, fs.ErrPermission) {
		return permissionError(err)
	}
	return deviceError(err)
}
