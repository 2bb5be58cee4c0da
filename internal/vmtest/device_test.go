//go:build vmtest

package vmtest

import (
	"encoding/binary"
	"os"
	"testing"
)

// TestDevices asks each device for random bytes with nothing but a file: if
// this fails, the machine is wrong and not the agent.
func TestDevices(t *testing.T) {
	for _, path := range []string{"/dev/tpmrm0", "/dev/tpm0"} {
		t.Run(path, func(t *testing.T) {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			// TPM_ST_NO_SESSIONS, 12 octets, TPM_CC_GetRandom, 8 octets wanted.
			if _, err := f.Write([]byte{0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x7b, 0, 8}); err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, 4096)
			n, err := f.Read(answer)
			if err != nil {
				t.Fatal(err)
			}
			if n != 20 || binary.BigEndian.Uint32(answer[6:]) != 0 {
				t.Fatalf("GetRandom answered %x", answer[:n])
			}
		})
	}
}
