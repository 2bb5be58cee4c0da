package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
)

// storageAttributes are the attributes of the standard storage keys.
const storageAttributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"

// persist makes a primary key of the owner hierarchy and stores it at a handle. It
// replaces the object there.
func persist(t *testing.T, tpm *tpmtest.SWTPM, handle, password string, options ...string) {
	t.Helper()
	saved := filepath.Join(t.TempDir(), "primary")
	auth := func(args ...string) []string {
		if password != "" {
			args = append([]string{"-P", password}, args...)
		}
		return args
	}
	if strings.Contains(string(tpm.Tool("tpm2_getcap", "handles-persistent")), handle) {
		tpm.Tool("tpm2_evictcontrol", auth("-Q", "-C", "o", "-c", handle)...)
	}
	tpm.Tool("tpm2_createprimary", auth(append([]string{"-Q", "-C", "o", "-G", "ecc", "-c", saved}, options...)...)...)
	tpm.Tool("tpm2_evictcontrol", auth("-Q", "-C", "o", "-c", saved, handle)...)
	tpm.Tool("tpm2_flushcontext", "-t")
}

// TestDifferentStorageKey checks that keygen and import refuse a storage key that
// differs from the remembered one: for each spelling of its handle, and if it is used
// because the owner hierarchy has a password.
func TestDifferentStorageKey(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		password string
		first    []string
		handle   string
		then     [][]string
	}{
		"at a handle": {
			"",
			[]string{"--parent", "0x81000005"},
			"0x81000005",
			[][]string{{"--parent", "0x81000005"}, {"--parent", "2164260869"}, {"--parent", "0X8100_0005"}},
		},
		"password": {"secret", nil, "0x81000001", [][]string{nil, {"--parent", "owner"}, {"--parent", "0x81000001"}}},
	} {
		t.Run(name, func(t *testing.T) {
			tpm := tpmtest.Start(t)
			persist(t, tpm, test.handle, "", "-a", storageAttributes)
			if test.password != "" {
				tpm.Tool("tpm2_changeauth", "-c", "o", test.password)
			}
			home := program(t).Dir
			sshKey(t, filepath.Join(home, "old"), "")
			run := func(args ...string) (string, int) {
				cmd := programIn(t, home, append([]string{"--tpm", tpm.Address()}, args...)...)
				out, err := cmd.CombinedOutput()
				return string(out), status(t, err)
			}
			keygen := []string{"keygen", "-q", "-N", "", "-f"}
			if out, code := run(append(append(keygen, "first"), test.first...)...); code != 0 {
				t.Fatalf("status %d: %s", code, out)
			}
			persist(t, tpm, test.handle, test.password)
			before := len(list(t, home))
			for _, parent := range test.then {
				for _, args := range [][]string{append(keygen, "second"), {"import", "-q", "--no-pin", "old"}} {
					args = append(args, parent...)
					out, code := run(args...)
					if code != 1 || !strings.Contains(out, "the storage key at "+test.handle+" is not the one of ") || !strings.Contains(out, "--new-tpm") {
						t.Errorf("%q: status %d: %s", args, code, out)
					}
				}
			}
			if files := list(t, home); len(files) != before {
				t.Errorf("the refused commands left the files %q", files)
			}
			if out, code := run(append(append(keygen, "second", "--new-tpm"), test.first...)...); code != 0 {
				t.Errorf("--new-tpm: status %d: %s", code, out)
			}
			if left, err := tpm.Leftovers(); err != nil || len(left) > 0 {
				t.Errorf("left in the TPM: %q, %v", left, err)
			}
		})
	}
}

// TestNoStorageKey checks that the error for an empty handle is about the handle, not
// about a key that was made under it.
func TestNoStorageKey(t *testing.T) {
	t.Parallel()
	tpm := tpmtest.Start(t)
	home := program(t).Dir
	sshKey(t, filepath.Join(home, "old"), "")
	for _, args := range [][]string{{"srk"}, {"keygen", "-N", "", "-f", "new"}, {"import", "--no-pin", "old"}} {
		cmd := programIn(t, home, append(args, "--tpm", tpm.Address(), "--parent", "0x81000123")...)
		out, err := cmd.CombinedOutput()
		if code := status(t, err); code != 1 || !strings.Contains(string(out), "nothing is at 0x81000123") ||
			!strings.Contains(string(out), "tpm2_getcap handles-persistent") || strings.Contains(string(out), "was made under") {
			t.Errorf("%q: status %d: %s", args, code, out)
		}
	}
}

// TestStorageKeyRemoved checks what list and inspect report if a key's storage key was
// removed from its handle or replaced there: this does not mean a different TPM.
func TestStorageKeyRemoved(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*tpmtest.SWTPM){
		"removed":  func(tpm *tpmtest.SWTPM) { tpm.Tool("tpm2_evictcontrol", "-Q", "-C", "o", "-c", "0x81000005") },
		"replaced": func(tpm *tpmtest.SWTPM) { persist(t, tpm, "0x81000005", "") },
	} {
		tpm := tpmtest.Start(t)
		persist(t, tpm, "0x81000005", "", "-a", storageAttributes)
		home := program(t).Dir
		run := func(args ...string) string {
			cmd := programIn(t, home, append(args, "--tpm", tpm.Address())...)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %q: %v: %s", name, args, err, out)
			}
			return string(out)
		}
		run("keygen", "-q", "-N", "", "-f", "id", "--parent", "0x81000005")
		change(tpm)
		want := "its storage key is no longer at 0x81000005: it was removed or replaced on " + time.Now().Format(time.DateOnly) + ", or this TPM was cleared or is a different one\n"
		if out := run("inspect", "id.tpm"); !strings.Contains(out, "does not load it: loading the key: "+want) {
			t.Errorf("%s: inspect reports %s", name, out)
		}
		if out := run("list", "--key-dir", "."); !strings.Contains(out, "* id: "+want) {
			t.Errorf("%s: list reports %s", name, out)
		}
		persist(t, tpm, "0x81000005", "", "-a", storageAttributes)
		if out := run("inspect", "id.tpm"); !strings.Contains(out, "loads it") {
			t.Errorf("%s: inspect reports %s", name, out)
		}
		if out := run("list", "--key-dir", "."); strings.Contains(out, "*") {
			t.Errorf("%s: list reports %s", name, out)
		}
	}
}
