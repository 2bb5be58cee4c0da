//go:build vmtest

package vm

import (
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
	"testing"
)

const (
	managed = "/dev/tpmrm0" // behind the kernel's resource manager
	raw     = "/dev/tpm0"   // the TPM itself, one program at a time
)

// open opens a device for blocking use. os.OpenFile would set O_NONBLOCK, because
// the device can be polled. The driver then works in the background, and a read
// before the answer returns end of file instead of EAGAIN.
func open(path string) (*os.File, error) {
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// exchange sends one command through a plain file, so that the tests do not rely on
// the code that they test.
func exchange(path string, command []byte) ([]byte, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Write(command); err != nil {
		return nil, err
	}
	answer := make([]byte, 4096)
	n, err := f.Read(answer)
	if err != nil {
		return nil, fmt.Errorf("reading the answer to %x: %w", command, err)
	}
	if n < 10 || binary.BigEndian.Uint32(answer[6:]) != 0 {
		return nil, fmt.Errorf("%s answered %x", path, answer[:n])
	}
	return answer[10:n], nil
}

// handles lists the transient objects and the sessions, loaded or saved, in the TPM.
// It uses the raw device, because the resource manager shows each program only its
// own.
func handles() ([]uint32, error) {
	var all []uint32
	for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
		// TPM_ST_NO_SESSIONS, 22 octets, TPM_CC_GetCapability(TPM_CAP_HANDLES, first, 64)
		command := []byte{0x80, 0x01, 0, 0, 0, 22, 0, 0, 0x01, 0x7a, 0, 0, 0, 1}
		command = binary.BigEndian.AppendUint32(command, first)
		answer, err := exchange(raw, binary.BigEndian.AppendUint32(command, 64))
		if err != nil {
			return nil, err
		}
		// moreData, capability, count, handles
		if len(answer) < 9 || len(answer) != 9+4*int(binary.BigEndian.Uint32(answer[5:])) {
			return nil, fmt.Errorf("GetCapability answered %x", answer)
		}
		for rest := answer[9:]; len(rest) > 0; rest = rest[4:] {
			all = append(all, binary.BigEndian.Uint32(rest))
		}
	}
	return all, nil
}

// TestDevices gets random bytes from each device. If it fails, the virtual machine
// is broken and not the agent.
func TestDevices(t *testing.T) {
	for _, path := range []string{managed, raw} {
		// TPM_ST_NO_SESSIONS, 12 octets, TPM_CC_GetRandom, 8 octets wanted.
		answer, err := exchange(path, []byte{0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x7b, 0, 8})
		if err != nil {
			t.Fatal(err)
		}
		if len(answer) != 10 {
			t.Errorf("%s: GetRandom answered %x", path, answer)
		}
	}
}

// TestHandlesAreSeen creates a transient object and finds it, to show that the check
// for leftovers can fail.
func TestHandlesAreSeen(t *testing.T) {
	// TPM2_HashSequenceStart of SHA-256 without an auth value. On the raw device
	// its object remains when the file is closed.
	answer, err := exchange(raw, []byte{0x80, 0x01, 0, 0, 0, 14, 0, 0, 0x01, 0x86, 0, 0, 0, 0x0b})
	if err != nil {
		t.Fatal(err)
	}
	left, err := handles()
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 1 || left[0] != binary.BigEndian.Uint32(answer) {
		t.Errorf("handles are %x after one was made: %x", left, answer)
	}
	// TPM2_FlushContext
	if _, err := exchange(raw, append([]byte{0x80, 0x01, 0, 0, 0, 14, 0, 0, 0x01, 0x65}, answer[:4]...)); err != nil {
		t.Fatal(err)
	}
	if left, err = handles(); err != nil || len(left) != 0 {
		t.Errorf("handles are %x, %v after the flush", left, err)
	}
}
