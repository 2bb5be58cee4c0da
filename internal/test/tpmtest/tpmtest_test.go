package tpmtest_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ccGetRandom        = 0x17b
	ccStartAuthSession = 0x176
	ccFlushContext     = 0x165
	ccHashSequence     = 0x186
)

// TestNames compares the names around every gap of the table with go-tpm's
// constants. A missing or extra entry would show there.
func TestNames(t *testing.T) {
	t.Parallel()
	for name, code := range map[string]tpm2.TPMCC{
		"NV_UndefineSpaceSpecial": tpm2.TPMCCNVUndefineSpaceSpecial,
		"NV_UndefineSpace":        tpm2.TPMCCNVUndefineSpace,
		"ChangeEPS":               tpm2.TPMCCChangeEPS,
		"CreatePrimary":           tpm2.TPMCCCreatePrimary,
		"PCR_Event":               tpm2.TPMCCPCREvent,
		"Startup":                 tpm2.TPMCCStartup,
		"Create":                  tpm2.TPMCCCreate,
		"Load":                    tpm2.TPMCCLoad,
		"RSA_Decrypt":             tpm2.TPMCCRSADecrypt,
		"HMAC_Start":              tpm2.TPMCCMACStart,
		"Sign":                    tpm2.TPMCCSign,
		"Unseal":                  tpm2.TPMCCUnseal,
		"PolicySigned":            tpm2.TPMCCPolicySigned,
		"ContextLoad":             tpm2.TPMCCContextLoad,
		"FlushContext":            tpm2.TPMCCFlushContext,
		"LoadExternal":            tpm2.TPMCCLoadExternal,
		"PolicyLocality":          tpm2.TPMCCPolicyLocality,
		"RSA_Encrypt":             tpm2.TPMCCRSAEncrypt,
		"StartAuthSession":        tpm2.TPMCCStartAuthSession,
		"GetCapability":           tpm2.TPMCCGetCapability,
		"ReadClock":               tpm2.TPMCCReadClock,
		"TestParms":               tpm2.TPMCCTestParms,
		"CreateLoaded":            tpm2.TPMCCCreateLoaded,
		"ACT_SetTimeout":          tpm2.TPMCCACTSetTimeout,
	} {
		if got := tpmtest.CommandName(uint32(code)); got != name {
			t.Errorf("%#x is %s, want %s", code, got, name)
		}
	}
	for _, code := range []uint32{0, 0x11e, 0x123, 0x15a, 0x199, 1 << 31} {
		if got, want := tpmtest.CommandName(code), fmt.Sprintf("%#x", code); got != want {
			t.Errorf("the code %#x, which is none, is %s", code, got)
		}
	}
}

// startSession leaves an HMAC session in the TPM and returns its handle.
func startSession(t *testing.T, s *tpmtest.SWTPM) []byte {
	t.Helper()
	p := []byte{0x40, 0, 0, 7, 0x40, 0, 0, 7, 0, 16}
	p = append(p, make([]byte, 16)...)       // nonce
	p = append(p, 0, 0, 0, 0, 0x10, 0, 0x0b) // no salt, HMAC, no symmetric, SHA-256
	answer, err := s.Command(ccStartAuthSession, p)
	if err != nil {
		t.Fatal(err)
	}
	return answer[:4]
}

func TestLeftovers(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	none := func() {
		t.Helper()
		if left, err := s.Leftovers(); err != nil || len(left) > 0 {
			t.Fatal(left, err)
		}
	}
	none()
	session := startSession(t, s)
	object, err := s.Command(ccHashSequence, []byte{0, 0, 0, 0x0b})
	if err != nil {
		t.Fatal(err)
	}
	left, err := s.Leftovers()
	if err != nil || len(left) != 2 || !strings.HasPrefix(left[0], "transient object 0x80") ||
		!strings.HasPrefix(left[1], "loaded session 0x02") {
		t.Fatal(left, err)
	}
	for _, h := range [][]byte{session, object[:4]} {
		if _, err := s.Command(ccFlushContext, h); err != nil {
			t.Fatal(err)
		}
	}
	none()
	startSession(t, s)
	s.Restart()
	none()
	startSession(t, s)
	s.Reset()
	none()
}

// primary returns the owner hierarchy's ECC primary key, which tells one TPM
// from another.
func primary(t *testing.T, s *tpmtest.SWTPM) string {
	t.Helper()
	key := s.Tool("tpm2_createprimary", "-Q", "-G", "ecc", "-C", "o", "-c", "p.ctx", "-f", "pem", "-o", "/dev/stdout")
	if !strings.Contains(string(key), "PUBLIC KEY") {
		t.Fatalf("tpm2_createprimary printed %q", key)
	}
	s.Tool("tpm2_flushcontext", "-t")
	return string(key)
}

func TestStates(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	before := primary(t, s)
	for name, again := range map[string]func(){
		"Restart":             s.Restart,
		"Kill, Restart":       func() { s.Kill(); s.Restart() },
		"Stop, Restart":       func() { s.Stop(); s.Restart() },
		"Reset":               s.Reset,
		"Kill twice, Restart": func() { s.Kill(); s.Kill(); s.Restart() },
	} {
		pid := s.PID()
		again()
		if s.PID() == pid || s.PID() == 0 {
			t.Errorf("%s: process %d after %d", name, s.PID(), pid)
		}
		if primary(t, s) != before {
			t.Errorf("%s: another TPM", name)
		}
	}
	s.Replace()
	if primary(t, s) == before {
		t.Error("Replace: the same TPM")
	}
	s.Kill()
	if _, err := net.Dial("unix", s.Socket()); err == nil {
		t.Error("the TPM answers after Kill")
	}
}

// opener returns a recorder in front of s, and a connection through it.
func opener(t *testing.T, s *tpmtest.SWTPM) (*tpmtest.Recorder, tpmtest.Conn) {
	t.Helper()
	a, err := tcti.Parse(s.Address())
	if err != nil {
		t.Fatal(err)
	}
	r := tpmtest.Record(a.Open)
	return r, reopen(t, r)
}

func reopen(t *testing.T, r *tpmtest.Recorder) tpmtest.Conn {
	t.Helper()
	c, err := r.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

var random = tpmtest.NewCommand(ccGetRandom, []byte{0, 8})

func TestRecorder(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	r, c := opener(t, s)
	test := tpmtest.NewCommand(0x17c, nil)
	for _, command := range [][]byte{random, test, random} {
		if _, err := c.Send(t.Context(), command); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.Commands(); !slices.Equal(got, []string{"GetRandom", "GetTestResult", "GetRandom"}) {
		t.Error(got)
	}
	if !r.Sent(test) || r.Sent([]byte("something else")) {
		t.Error("Sent does not tell what was sent")
	}
	r.Forget()
	if len(r.Commands()) != 0 {
		t.Error("Forget does not forget")
	}
	if r.StillOpen() != 1 {
		t.Error("open:", r.StillOpen())
	}
	c.Close()
	c.Close()
	if r.Opened() != 1 || r.StillOpen() != 0 {
		t.Error("opened, still open:", r.Opened(), r.StillOpen())
	}
	s.Kill()
	if c, err := r.Open(t.Context()); err == nil || c != nil || r.Opened() != 1 {
		t.Errorf("Open without a TPM: %v, %v", c, err)
	}
}

func TestCodes(t *testing.T) {
	t.Parallel()
	r, c := opener(t, tpmtest.Start(t))
	r.Inject(tpmtest.Fault{Command: "GetRandom", Skip: 1, Times: 2, Effect: tpmtest.Code(0x922)})
	r.Inject(tpmtest.Fault{Effect: tpmtest.Code(0x908)})
	// The first fault lets the first command through, the second does not.
	for i, want := range []uint32{0, 0x922, 0x922, 0x908, 0} {
		answer, err := c.Send(t.Context(), random)
		if err != nil {
			t.Fatal(err)
		}
		if rc := tpmtest.ReturnCode(answer); rc != want {
			t.Errorf("command %d: %#x, want %#x", i, rc, want)
		}
	}
	if n := r.Disarm(); n != 0 {
		t.Errorf("%d faults unused", n)
	}
	r.Inject(tpmtest.Fault{Command: "Sign", Effect: tpmtest.Code(1)})
	if n := r.Disarm(); n != 1 {
		t.Errorf("%d faults unused, want 1", n)
	}
}

func TestEffects(t *testing.T) {
	t.Parallel()
	r, c := opener(t, tpmtest.Start(t))
	send := func(ctx context.Context, e tpmtest.Effect) ([]byte, error) {
		r.Inject(tpmtest.Fault{Effect: e})
		return c.Send(ctx, random)
	}
	if a, err := send(t.Context(), tpmtest.Short(7)); err != nil || len(a) != 7 {
		t.Error("Short:", a, err)
	}
	waiting, release := make(chan struct{}), make(chan struct{})
	go func() { <-waiting; close(release) }()
	if a, err := send(t.Context(), tpmtest.Hold(func() { close(waiting) }, release)); err != nil || len(a) != 20 {
		t.Error("Hold:", a, err)
	}
	for name, e := range map[string]tpmtest.Effect{"DropBefore": tpmtest.DropBefore(), "DropAfter": tpmtest.DropAfter()} {
		if a, err := send(t.Context(), e); err == nil || a != nil {
			t.Errorf("%s: %x, %v", name, a, err)
		}
		if _, err := c.Send(t.Context(), random); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after %s: %v", name, err)
		}
		c.Close()
		c = reopen(t, r)
	}
}

// A TPM leaves no descriptors open.
func TestNoDescriptors(t *testing.T) {
	count := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(d)
	}
	tpmtest.Start(t).Kill()
	before := count()
	for range 5 {
		tpmtest.Start(t).Kill()
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
