//go:build vmtest

package vm

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/tcti"
)

// openTCTI opens a device as the agent does, and closes it with the test.
func openTCTI(t *testing.T, device string) *tcti.Conn {
	t.Helper()
	address, err := tcti.Parse("device:" + device)
	if err != nil {
		t.Fatal(err)
	}
	// A Conn that was closed during a command releases the raw device when the
	// command ends.
	var conn *tcti.Conn
	eventually(t, "the device", func() error {
		conn, err = address.Open(t.Context())
		if err != nil && !errors.Is(err, tcti.ErrBusy) {
			t.Fatal(err)
		}
		return err
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

// getRandom is TPM2_GetRandom of n bytes. The length of the answer shows which
// command it belongs to.
func getRandom(n int) []byte {
	return binary.BigEndian.AppendUint16([]byte{0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x7b}, uint16(n))
}

// TestTransportUnderSignals sends commands while its own process gets SIGURG. Each
// answer must be complete and belong to its command.
func TestTransportUnderSignals(t *testing.T) {
	onEach(t, func(t *testing.T, device string) {
		conn := openTCTI(t, device)
		if conn.Managed() != (device == managed) {
			t.Errorf("Managed() is %v", conn.Managed())
		}
		var storm sync.WaitGroup
		var over atomic.Bool
		storm.Go(func() {
			for !over.Load() {
				syscall.Kill(syscall.Getpid(), syscall.SIGURG)
			}
		})
		defer storm.Wait()
		defer over.Store(true)
		for n := range 300 {
			want := 1 + n%32
			answer, err := conn.Send(t.Context(), getRandom(want))
			if err != nil {
				t.Fatalf("command %d: %v", n, err)
			}
			if len(answer) != 12+want {
				t.Fatalf("command %d: answer of %d octets, want %d: %x", n, len(answer), 12+want, answer)
			}
		}
	})
}

// TestTransportGivesUp cancels commands before they are answered. Afterwards the
// Conn is closed or usable, and later commands get their own answers.
func TestTransportGivesUp(t *testing.T) {
	onEach(t, func(t *testing.T, device string) {
		for n := range 20 {
			conn := openTCTI(t, device)
			ctx, cancel := context.WithCancel(t.Context())
			go cancel()
			answer, err := conn.Send(ctx, getRandom(1+n))
			if err == nil && len(answer) != 13+n {
				t.Errorf("cancelled command %d: %x", n, answer)
			}
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled command %d: %v", n, err)
			}
			conn.Close()
		}
		answer, err := openTCTI(t, device).Send(t.Context(), getRandom(32))
		if err != nil || len(answer) != 44 {
			t.Errorf("afterwards: %x, %v", answer, err)
		}
	})
}
