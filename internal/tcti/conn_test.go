package tcti_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/internal/test/needs"
	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
)

// Command codes that the tests use.
const (
	ccGetRandom     = 0x17b
	ccGetTestResult = 0x17c
	ccHash          = 0x17d
)

// hash returns the command TPM2_Hash of data, with SHA-256 in the null hierarchy. Only
// this command has its answer.
func hash(data []byte) []byte {
	p := binary.BigEndian.AppendUint16(nil, uint16(len(data)))
	p = append(p, data...)
	p = append(p, 0x00, 0x0b)
	p = binary.BigEndian.AppendUint32(p, 0x40000007)
	return tpmtest.NewCommand(ccHash, p)
}

func open(t testing.TB, address string) *tcti.Conn {
	t.Helper()
	a, err := tcti.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	if address == "software" {
		needs.Programs(t, "swtpm")
	}
	c, err := a.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// works expects TPM2_GetRandom to return 8 octets.
func works(t testing.TB, c *tcti.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	answer, err := c.Send(ctx, tpmtest.NewCommand(ccGetRandom, []byte{0, 8}))
	if err != nil {
		t.Fatal(err)
	}
	if len(answer) != 20 || tpmtest.ReturnCode(answer) != 0 {
		t.Fatalf("unexpected answer %x", answer)
	}
}

// gone expects the Conn to be closed for good.
func gone(t testing.TB, c *tcti.Conn) {
	t.Helper()
	_, err := c.Send(t.Context(), tpmtest.NewCommand(ccGetTestResult, nil))
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("Send after an error: %v, want net.ErrClosed", err)
	}
}

func TestSWTPM(t *testing.T) {
	s := tpmtest.Start(t)
	c := open(t, s.Address())
	if c.Managed() {
		t.Error("a raw TPM is managed")
	}
	for range 50 {
		works(t, c)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error("closed again:", err)
	}
	gone(t, c)
}

func TestSoftware(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", filepath.Join(t.TempDir(), "with,comma"))
	for range 3 {
		c := open(t, "software")
		works(t, c)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		gone(t, c)
	}
}

// TestSoftwareGivenUp gives up a command that the software TPM works on. It must be
// shut down anyway, and the next one must start.
func TestSoftwareGivenUp(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	for range 5 {
		c := open(t, "software")
		works(t, c)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		// TPM2_SelfTest(full) takes longer than that.
		_, err := c.Send(ctx, tpmtest.NewCommand(0x143, []byte{1}))
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestSignals sends commands while another goroutine floods the process with the
// signal with which Go preempts goroutines, and compares every answer.
func TestSignals(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	c := open(t, s.Address())
	underSignals(t, c)
}

func underSignals(t *testing.T, c *tcti.Conn) {
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				syscall.Kill(os.Getpid(), syscall.SIGURG)
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	seen := make(map[string]int)
	for i := range 300 {
		data := fmt.Append(nil, i)
		answer, err := c.Send(t.Context(), hash(data))
		if err != nil {
			t.Fatal(err)
		}
		again, err := c.Send(t.Context(), hash(data))
		if err != nil {
			t.Fatal(err)
		}
		if tpmtest.ReturnCode(answer) != 0 || !bytes.Equal(answer[:44], again[:44]) {
			t.Fatalf("command %d: %x, then %x", i, answer, again)
		}
		if before, ok := seen[string(answer[12:44])]; ok {
			t.Fatalf("command %d has the answer of command %d", i, before)
		}
		seen[string(answer[12:44])] = i
	}
}

func TestSendRefuses(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	c := open(t, s.Address())
	wrong := tpmtest.NewCommand(ccGetRandom, []byte{0, 8})
	wrong[5]++
	for name, command := range map[string][]byte{
		"empty":      nil,
		"short":      make([]byte, 9),
		"wrong size": wrong,
		"too long":   tpmtest.NewCommand(ccGetRandom, make([]byte, 4087)),
	} {
		if _, err := c.Send(t.Context(), command); err == nil {
			t.Errorf("%s command: no error", name)
		}
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Send(over, hash(nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("context that is over: %v", err)
	}
	works(t, c) // none of that has reached the TPM
}

func TestMuteTPM(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	for name, end := range map[string]func(context.Context) (context.Context, context.CancelFunc){
		"deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 20*time.Millisecond)
		},
		"cancel": func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(20*time.Millisecond, cancel)
			return ctx, cancel
		},
	} {
		c := open(t, s.Address())
		works(t, c)
		s.Pause()
		for sent := false; !sent; { // if the context ends too early, the Conn stays open
			ctx, cancel := end(t.Context())
			_, err := c.Send(ctx, hash(nil))
			<-ctx.Done()
			if !errors.Is(err, ctx.Err()) {
				t.Errorf("%s: %v", name, err)
			}
			cancel()
			sent = err == nil || !strings.Contains(err.Error(), "nothing was sent to the TPM")
		}
		s.Resume()
		gone(t, c)
		next := open(t, s.Address())
		works(t, next)
		next.Close() // swtpm serves one at a time
	}
}

// BenchmarkSend compares a command through a Conn with the bare socket.
func BenchmarkSend(b *testing.B) {
	s := tpmtest.Start(b)
	command := tpmtest.NewCommand(ccGetTestResult, nil)
	b.Run("bare", func(b *testing.B) {
		c, err := net.Dial("unix", s.Socket())
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		buf := make([]byte, 4096)
		for b.Loop() {
			c.Write(command)
			if _, err := c.Read(buf); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("conn", func(b *testing.B) {
		c := open(b, s.Address())
		defer c.Close()
		ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
		defer cancel()
		for b.Loop() {
			if _, err := c.Send(ctx, command); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkSoftware starts and stops the private software TPM.
func BenchmarkSoftware(b *testing.B) {
	b.Setenv("XDG_STATE_HOME", b.TempDir())
	for b.Loop() {
		open(b, "software").Close()
	}
}
