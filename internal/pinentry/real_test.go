package pinentry

import (
	"os/exec"
	"testing"
	"time"
)

// program finds one of the real pinentries.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

type result struct {
	pin    []byte
	button Button
	err    error
}

func TestRealGetPIN(t *testing.T) {
	for _, name := range []string{"pinentry-curses", "pinentry-tty"} {
		t.Run(name, func(t *testing.T) {
			path := program(t, name)
			p := newPTY(t)
			done := make(chan result, 1)
			go func() {
				pin, err := GetPIN(t.Context(), path, Dialog{
					Description: "Key id_ecdsa\nfor ssh", Prompt: "PIN", Environ: []string{"PATH=/usr/bin:/bin"},
					Terminal: p.terminal(), Owner: 1, KeyInfo: "s/0123", Timeout: time.Minute, Title: "tpm-agent",
				})
				done <- result{pin: pin, err: err}
			}()
			p.waitFor("id_ecdsa")
			p.waitFor("PIN")
			p.types("12%34\r")
			if got := <-done; got.err != nil || string(got.pin) != "12%34" {
				t.Errorf("got %q, %v", got.pin, got.err)
			}
			t.Logf("%q", p.seen.String())
		})
	}
}
