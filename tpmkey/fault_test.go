package tpmkey_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// TestPassingCodesAreRetried checks the response codes that mean "not now", for the
// commands of a signature.
func TestPassingCodesAreRetried(t *testing.T) {
	t.Parallel()
	codes := map[string]tpm2.TPMRC{
		"RETRY": tpm2.TPMRCRetry, "YIELDED": tpm2.TPMRCYielded, "TESTING": tpm2.TPMRCTesting,
		"OBJECT_MEMORY": tpm2.TPMRCObjectMemory, "OBJECT_HANDLES": tpm2.TPMRCObjectHandles,
		"SESSION_MEMORY": tpm2.TPMRCSessionMemory, "SESSION_HANDLES": tpm2.TPMRCSessionHandles,
		"RETRY, from a resource manager": 0xB0000 | tpm2.TPMRCRetry,
	}
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "pin")
	for name, rc := range codes {
		t.Run(name, func(t *testing.T) {
			for _, command := range []string{"ContextLoad", "Sign", "FlushContext", ""} {
				f.Inject(tpmtest.Fault{Command: command, Times: 3, Effect: tpmtest.Code(uint32(rc))})
				mustSign(t, key, "pin", crypto.SHA256)
				if n := f.Disarm(); n != 0 {
					t.Fatalf("%d faults did not happen", n)
				}
			}
		})
	}
}

// TestRetriesEndWithTheClient cancels the context during the retries of TPM2_Sign.
// They must end, and the key must be flushed anyway.
func TestRetriesEndWithTheClient(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "")
	mustSign(t, key, "", crypto.SHA256)
	ctx, cancel := context.WithCancel(testContext(t))
	tries := 0
	f.Inject(tpmtest.Fault{Command: "Sign", Times: 1000, Effect: func(context.Context, tpmtest.Conn, []byte) ([]byte, error) {
		if tries++; tries == 3 {
			cancel()
		}
		return tpmtest.NewAnswer(uint32(tpm2.TPMRCRetry)), nil
	}})
	_, err := key.Sign(ctx, nil, digest(crypto.SHA256), crypto.SHA256)
	if !errors.Is(err, tpm2.TPMRCRetry) || !strings.Contains(err.Error(), "TPM2_Sign") || !errors.Is(err, context.Canceled) {
		t.Errorf("Sign: %v, want context.Canceled and TPM2_Sign: TPM_RC_RETRY", err)
	}
	f.Disarm()
	mustSign(t, key, "", crypto.SHA256)
}

// TestBrokenConnections breaks each command of a signature in each way. That
// signature may fail; the next one must be correct. Nothing may stay in the TPM,
// which has no resource manager (the test's own TPM checks this at its end).
func TestBrokenConnections(t *testing.T) {
	t.Parallel()
	effects := map[string]func() tpmtest.Effect{
		"dropped before": func() tpmtest.Effect { return tpmtest.DropBefore() },
		"dropped after":  func() tpmtest.Effect { return tpmtest.DropAfter() },
		"short answer":   func() tpmtest.Effect { return tpmtest.Short(7) },
		"cut answer":     func() tpmtest.Effect { return tpmtest.Short(14) },
		"garbage": func() tpmtest.Effect {
			return tpmtest.Change(func(a []byte) []byte { return bytes.Repeat([]byte{0xA5}, len(a)) })
		},
		"garbage in a right frame": func() tpmtest.Effect {
			return tpmtest.Change(func(a []byte) []byte {
				for i := 10; i < len(a); i++ {
					a[i] = 0xFF
				}
				return a
			})
		},
	}
	for name, effect := range effects {
		for _, pin := range []string{"", "1234"} {
			t.Run(name+"/PIN="+pin, func(t *testing.T) {
				t.Parallel()
				f := start(t)
				key := f.create(t, tpmkey.ECDSAP256, pin)
				mustSign(t, key, pin, crypto.SHA256)
				for _, command := range []string{"ContextLoad", "Sign", "FlushContext"} {
					f.Inject(tpmtest.Fault{Command: command, Effect: effect()})
					sig, err := key.Sign(testContext(t), []byte(pin), digest(crypto.SHA256), crypto.SHA256)
					if err == nil && !verifies(key.Public(), crypto.SHA256, sig) {
						t.Fatalf("%s: a wrong signature got out", command)
					}
					f.Disarm()
					mustSign(t, key, pin, crypto.SHA256)
				}
			})
		}
	}
}

// TestFirstUseBroken breaks the commands of the first use of a key.
func TestFirstUseBroken(t *testing.T) {
	t.Parallel()
	f := start(t)
	file := f.create(t, tpmkey.ECDSAP256, "1234").File()
	for _, command := range []string{"ReadPublic", "CreatePrimary", "ContextSave", "Load", "StartAuthSession", "ReadClock"} {
		for name, effect := range map[string]tpmtest.Effect{"before": tpmtest.DropBefore(), "after": tpmtest.DropAfter()} {
			t.Run(command+" "+name, func(t *testing.T) {
				f.Close(t)
				f.tpm = f.newTPM(t)
				key := f.key(t, file)
				f.Inject(tpmtest.Fault{Command: command, Effect: effect})
				_, _ = key.Sign(testContext(t), []byte("1234"), digest(crypto.SHA256), crypto.SHA256)
				if n := f.Disarm(); n != 0 {
					t.Fatalf("%s was not sent", command)
				}
				mustSign(t, key, "1234", crypto.SHA256)
			})
		}
	}
}

// TestTPMRestarted restarts the TPM between two signatures, with the connection idle
// or closed. No signature may fail.
func TestTPMRestarted(t *testing.T) {
	t.Parallel()
	for _, pin := range []string{"", "1234"} {
		f := start(t)
		f.lockout("100", "1000") // each unclean stop may count as a wrong try
		key := f.create(t, tpmkey.ECDSAP256, pin)
		for range 3 {
			mustSign(t, key, pin, crypto.SHA256)
			f.SWTPM.Reset()
			mustSign(t, key, pin, crypto.SHA256)
		}
		f.waitIdle(t)
		f.SWTPM.Reset()
		mustSign(t, key, pin, crypto.SHA256)
	}
}

func TestTPMGoneAndBack(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "1234")
	mustSign(t, key, "1234", crypto.SHA256)
	f.Kill()
	for range 3 {
		if _, err := key.Sign(testContext(t), []byte("1234"), digest(crypto.SHA256), crypto.SHA256); err == nil {
			t.Fatal("signed without a TPM")
		}
	}
	f.Restart()
	mustSign(t, key, "1234", crypto.SHA256)
}

// TestKilledInTheMiddle kills the TPM while it runs a command.
func TestKilledInTheMiddle(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.lockout("100", "1000")
	key := f.create(t, tpmkey.ECDSAP256, "1234")
	for _, command := range []string{"ContextLoad", "Sign", "FlushContext"} {
		mustSign(t, key, "1234", crypto.SHA256)
		f.Inject(tpmtest.Fault{Command: command, Effect: func(ctx context.Context, c tpmtest.Conn, cmd []byte) ([]byte, error) {
			f.SWTPM.Reset()
			return c.Send(ctx, cmd)
		}})
		_, _ = key.Sign(testContext(t), []byte("1234"), digest(crypto.SHA256), crypto.SHA256)
		mustSign(t, key, "1234", crypto.SHA256)
	}
}

func TestDifferentTPM(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "")
	mustSign(t, key, "", crypto.SHA256)
	f.Replace()
	_, err := key.Sign(testContext(t), nil, digest(crypto.SHA256), crypto.SHA256)
	if !errors.Is(err, tpmkey.ErrWrongTPM) {
		t.Errorf("Sign in another TPM: %v, want ErrWrongTPM", err)
	}
	mustSign(t, f.create(t, tpmkey.ECDSAP256, ""), "", crypto.SHA256)
}

// TestNotStartedUp has a software TPM that needs TPM2_Startup.
func TestNotStartedUp(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "")
	f.Inject(tpmtest.Fault{Command: "ContextLoad", Effect: tpmtest.Code(uint32(tpm2.TPMRCInitialize))})
	f.Inject(tpmtest.Fault{Command: "ReadPublic", Effect: tpmtest.Code(uint32(tpm2.TPMRCInitialize))})
	got := f.commands(func() { mustSign(t, key, "", crypto.SHA256) })
	if !slices.Contains(got, "Startup") {
		t.Errorf("commands %v, want a Startup", got)
	}
	f.Disarm()
}

// TestWrongSignature falsifies a signature on the bus. It must not be returned.
func TestWrongSignature(t *testing.T) {
	t.Parallel()
	f := start(t)
	for _, a := range []tpmkey.Algorithm{tpmkey.ECDSAP256, tpmkey.RSA2048} {
		key := f.create(t, a, "")
		f.Inject(tpmtest.Fault{Command: "Sign", Effect: tpmtest.Change(func(answer []byte) []byte {
			answer[len(answer)-10] ^= 1 // the last octets are the empty authorization
			return answer
		})})
		_, err := key.Sign(testContext(t), nil, digest(crypto.SHA256), crypto.SHA256)
		if err == nil || !strings.Contains(err.Error(), "does not verify") {
			t.Errorf("%v: Sign with a falsified signature: %v, want that it does not verify", a, err)
		}
		mustSign(t, key, "", crypto.SHA256)
	}
}

// TestFalsifiedResponse falsifies a response for a key with a PIN, whose HMAC is then
// wrong.
func TestFalsifiedResponse(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "1234")
	mustSign(t, key, "1234", crypto.SHA256)
	f.Inject(tpmtest.Fault{Command: "Sign", Effect: tpmtest.Change(func(answer []byte) []byte {
		answer[30] ^= 1
		return answer
	})})
	if _, err := key.Sign(testContext(t), []byte("1234"), digest(crypto.SHA256), crypto.SHA256); err == nil {
		t.Error("a falsified response was accepted")
	}
	mustSign(t, key, "1234", crypto.SHA256)
}

// TestNoFreeSlots fills the TPM's three slots. The signature must continue
// when one becomes free.
func TestNoFreeSlots(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "")
	mustSign(t, key, "", crypto.SHA256)
	f.waitIdle(t)
	var taken []tpm2.TPMHandle
	for range 3 {
		taken = append(taken, f.takeSlot(t))
	}
	free := func(ctx context.Context, c tpmtest.Conn, cmd []byte) ([]byte, error) {
		answer, err := c.Send(ctx, cmd)
		if err == nil && tpmtest.ReturnCode(answer) == uint32(tpm2.TPMRCObjectMemory) && len(taken) > 0 {
			// The other program frees its slot.
			flush := tpmtest.NewCommand(uint32(tpm2.TPMCCFlushContext), binary.BigEndian.AppendUint32(nil, uint32(taken[0])))
			taken = taken[1:]
			if _, err := c.Send(ctx, flush); err != nil {
				return nil, err
			}
		}
		return answer, err
	}
	f.Inject(tpmtest.Fault{Command: "ContextLoad", Times: 2, Effect: free})
	mustSign(t, key, "", crypto.SHA256)
	if len(taken) != 2 {
		t.Errorf("%d slots are taken still, want 2: the first refusal frees one", len(taken))
	}
	f.Disarm()
	f.Close(t)
	f.Tool("tpm2_flushcontext", "-t")
}

// takeSlot loads an object on a connection of its own and leaves it in the TPM.
func (f *fixture) takeSlot(t *testing.T) tpm2.TPMHandle {
	t.Helper()
	conn, err := f.Open(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHNull, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(sender{testContext(t), conn})
	if err != nil {
		t.Fatal(err)
	}
	return rsp.ObjectHandle
}

// TestForeignHandlesAreKept checks that after a broken connection only our own
// object is flushed, although the TPM gives out handles again.
func TestForeignHandlesAreKept(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "")
	mustSign(t, key, "", crypto.SHA256)
	f.Inject(tpmtest.Fault{Command: "Sign", Effect: tpmtest.DropAfter()})
	if _, err := key.Sign(testContext(t), nil, digest(crypto.SHA256), crypto.SHA256); err == nil {
		t.Fatal("signed over a dropped connection")
	}
	// Our key is still in the first slot. Another program takes the second.
	other := f.takeSlot(t)
	mustSign(t, key, "", crypto.SHA256)
	f.Close(t)
	left, err := f.Handles(0x80000000)
	if err != nil || !slices.Equal(left, []uint32{uint32(other)}) {
		t.Errorf("in the TPM: %#x (%v), want only the other's %#x", left, err, uint32(other))
	}
	f.Tool("tpm2_flushcontext", "-t")
}

func TestClosedTPM(t *testing.T) {
	t.Parallel()
	f := start(t)
	key := f.create(t, tpmkey.ECDSAP256, "")
	f.Close(t)
	if _, err := key.Sign(testContext(t), nil, digest(crypto.SHA256), crypto.SHA256); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("Sign after Close: %v, want that the TPM is closed", err)
	}
}
