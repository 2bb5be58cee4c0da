package daemon

import (
	"fmt"
	"log/slog"
	"log/syslog"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestSyslog has a real syslog socket: the severity is the line's level, the
// facility is auth, and the time is there once.
func TestSyslog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	daemon, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Close()
	out, err := syslog.Dial("unixgram", path, syslog.LOG_AUTH|syslog.LOG_INFO, "tpm-agent")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	log := slog.New(slog.NewTextHandler(syslogLines{out}, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: withoutTime}))
	log.Debug("looking", "at", "all")
	log.With("key", "id ecdsa").Info("signed")
	log.WithGroup("peer").Warn("refused", "time", 1)
	log.Error("ended")
	for _, want := range []string{
		`^<39>.* tpm-agent\[\d+\]: level=DEBUG msg=looking at=all\n$`,
		`^<38>.* tpm-agent\[\d+\]: level=INFO msg=signed key="id ecdsa"\n$`,
		`^<36>.* tpm-agent\[\d+\]: level=WARN msg=refused peer.time=1\n$`,
		`^<35>.* tpm-agent\[\d+\]: level=ERROR msg=ended\n$`,
	} {
		if got := hears(t, daemon); !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("got %q, want %s", got, want)
		}
	}

	quiet := slog.New(slog.NewTextHandler(syslogLines{out}, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: withoutTime}))
	quiet.Info("not said")
	quiet.Warn("said")
	if got := hears(t, daemon); !strings.HasSuffix(got, "msg=said\n") {
		t.Errorf("below the level there was %q", got)
	}
}

// gated is a place to write to that takes nothing before it is open.
type gated struct {
	open chan struct{}
	mu   sync.Mutex
	text strings.Builder
}

func (g *gated) Write(b []byte) (int, error) {
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.text.Write(b)
}

func (g *gated) String() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.text.String()
}

// TestPatientLog: what comes while a line is not taken waits, and what there is
// no room for is counted.
func TestPatientLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, patientLogged)
}

func patientLogged(t *testing.T) {
	out := &gated{open: make(chan struct{})}
	options := &slog.HandlerOptions{ReplaceAttr: withoutTime}
	w := newPatientWriter(out, options)
	defer close(w.lines)
	log := slog.New(slog.NewTextHandler(w, options))
	begun := time.Now()
	log.Info("line", "n", 0)
	for n := range maxLogWaiting - 1 {
		log.With("n", n+1).Info("line")
	}
	log.Debug("not counted")
	log.Warn("lost")
	log.WithGroup("peer").Warn("lost")
	if waited := time.Since(begun); waited != logPatience {
		t.Errorf("the log was waited for for %v", waited)
	}
	close(out.open)
	synctest.Wait()
	var want strings.Builder
	for n := range maxLogWaiting {
		fmt.Fprintf(&want, "level=INFO msg=line n=%d\n", n)
	}
	if out.String() != want.String() {
		t.Errorf("logged:\n%s", out)
	}
	fmt.Fprintf(&want, "level=WARN msg=\"the log was not read, and lines are lost\" lines=2\n")
	for n := range 100 { // who has logged finds it written
		log.Info("after", "n", n)
		fmt.Fprintf(&want, "level=INFO msg=after n=%d\n", n)
		if out.String() != want.String() {
			t.Fatalf("logged:\n%s", out)
		}
	}
}

func hears(t *testing.T, manager *net.UnixConn) string {
	t.Helper()
	if err := manager.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 256)
	n, err := manager.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}
