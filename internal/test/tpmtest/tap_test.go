package tpmtest_test

import (
	"net"
	"strings"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
)

// Two clients have the TPM open at a time, the tap records what they send, and can
// send commands in between.
func TestTap(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	tap := s.Tap(t)
	a, err := tcti.Parse(tap.Address())
	if err != nil {
		t.Fatal(err)
	}
	r := tpmtest.Record(a.Open)
	for range 2 {
		if _, err := reopen(t, r).Send(t.Context(), random); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := tap.Lockout(); err != nil || got != (tpmtest.Lockout{}) {
		t.Errorf("%+v, %v; want all zero", got, err)
	}
	commands, answers := tap.Commands(), tap.Answers()
	if len(commands) != 2 || len(answers) != 2 || string(commands[1]) != string(random) || tpmtest.ReturnCode(answers[1]) != 0 {
		t.Errorf("%x, %x", commands, answers)
	}
}

// The tap refuses what is not a command.
func TestTapTurnsAway(t *testing.T) {
	t.Parallel()
	tap := tpmtest.Start(t).Tap(t)
	for _, nonsense := range []string{strings.Repeat("\xff", 10), strings.Repeat("\x00", 10)} {
		c, err := net.Dial("unix", strings.TrimPrefix(tap.Address(), "swtpm:path="))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte(nonsense)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%x is answered with %d octets", nonsense, n)
		}
	}
}

// Wrong auth values count, and lock the TPM after some tries.
func TestLockout(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	s.Tool("tpm2_dictionarylockout", "--setup-parameters", "--max-tries=2", "--recovery-time=600", "--lockout-recovery-time=600")
	s.Tool("tpm2_createprimary", "-Q", "-G", "ecc", "-c", "p.ctx")
	s.Tool("tpm2_create", "-Q", "-C", "p.ctx", "-G", "ecc", "-p", "right", "-u", "k.pub", "-r", "k.priv", "-c", "k.ctx")
	s.Tool("tpm2_flushcontext", "-t")
	for tries, want := range []tpmtest.Lockout{{}, {Counter: 1}, {Counter: 2, Locked: true}} {
		if tries > 0 {
			s.Fails("tpm2_sign", "-c", "k.ctx", "-p", "wrong", "-g", "sha256", "-o", "sig", "k.pub")
			s.Tool("tpm2_flushcontext", "-t")
		}
		if got, err := s.Lockout(); err != nil || got != want {
			t.Errorf("after %d: %+v, %v; want %+v", tries, got, err, want)
		}
	}
}
