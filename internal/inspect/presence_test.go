package inspect

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

func TestPresence(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	addr, err := tcti.Parse(tpmtest.Start(t).Address())
	if err != nil {
		t.Fatal(err)
	}
	tpm := tpmkey.New(addr.Open)
	defer tpm.Close()
	file, err := tpm.Create(t.Context(), tpmkey.Template{Algorithm: tpmkey.ECDSAP256})
	if err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(file.Public.Key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "key.tpm")
	write := func(path string, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := findPresence(t.Context(), addr, tpm, path, file, public, true)
	if p.InTPM != "yes" || p.Remembered != nil || p.At != "owner" || p.Why != "" {
		t.Errorf("%+v", p)
	}
	// What systemd has found at boot is compared.
	boot := filepath.Join(dir, "boot")
	compare := func(p presence) string { p.compareBoot(boot); return p.AtBoot }
	if got := compare(p); got != "" {
		t.Errorf("no file: %q", got)
	}
	write(boot, []byte("garbage"))
	if got := compare(p); got != "" {
		t.Errorf("garbage: %q", got)
	}
	write(boot, file.Pubkey) // any public area will do
	if got := compare(p); got != "" {
		t.Errorf("a storage key of another place: %q", got)
	}
	p.At = "0x81000001"
	if got := compare(p); got != "other" {
		t.Errorf("another in the same place: %q", got)
	}
	p.Present = fmt.Sprintf("%x", file.Public.Name())
	if got := compare(p); got != "same" {
		t.Errorf("the same: %q", got)
	}
	if p := findPresence(t.Context(), addr, tpm, path, file, public, false); p.InTPM != "unknown" || !strings.Contains(p.Why, "not asked") {
		t.Errorf("%+v", p)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if p := findPresence(ended, addr, tpm, path, file, public, true); p.InTPM != "unknown" || p.Why == "" {
		t.Errorf("%+v", p)
	}
	if _, err := os.Lstat(parents.Default().Path); err == nil {
		t.Error("a look has left a memory")
	}
}
