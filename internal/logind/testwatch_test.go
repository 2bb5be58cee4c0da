package logind

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// longEnough ends tests that would hang.
const longEnough = time.Minute

// watched is a running Watch.
type watched struct {
	t       *testing.T
	reasons chan string
	log     *lockedBuffer
	stop    func()
	hold    chan chan struct{} // what the next forget waits for, if anything
}

const ownUID = 4711

func watch(t *testing.T, address string) *watched {
	t.Helper()
	w := &watched{t: t, reasons: make(chan string, 16), log: new(lockedBuffer), hold: make(chan chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	go func() {
		done <- Watch(ctx, Options{Address: address, UID: ownUID, Log: log}, func(reason string) {
			w.reasons <- reason
			select {
			case held := <-w.hold:
				<-held
			default:
			}
		})
	}()
	w.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Watch: %v", err)
			}
		case <-time.After(longEnough):
			t.Error("Watch does not return")
		}
	})
	t.Cleanup(func() {
		w.stop()
		if len(w.reasons) > 0 {
			t.Errorf("unexpected: forget(%q)", <-w.reasons)
		}
		if t.Failed() {
			t.Logf("its log:\n%s", w.log)
		}
	})
	return w
}

// forgets waits for forget to be called.
func (w *watched) forgets(reason string) {
	w.t.Helper()
	select {
	case got := <-w.reasons:
		if got != reason {
			w.t.Fatalf("forget(%q), want %q", got, reason)
		}
	case <-time.After(longEnough):
		w.t.Fatalf("forget is not called; want forget(%q)", reason)
	}
}

// logs waits for a text in the log.
func (w *watched) logs(text string) {
	w.t.Helper()
	for start := time.Now(); !strings.Contains(w.log.String(), text); time.Sleep(time.Millisecond) {
		if time.Since(start) > longEnough {
			w.t.Fatalf("the log does not get %q", text)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// open counts the descriptors of this process.
func open(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// closed waits until at most n descriptors are open. Pipes to programs that have
// ended may still be.
func closed(t *testing.T, n int) {
	t.Helper()
	for start := time.Now(); open(t) > n; time.Sleep(time.Millisecond) {
		if time.Since(start) > longEnough {
			t.Fatalf("%d descriptors are open, want %d", open(t), n)
		}
	}
}
