package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
	"github.com/tpm-agent/tpm-agent/keyfile"
)

// TestInspectChangedPCR: a PCR has changed since the key was made. inspect says
// which, and the way out.
func TestInspectChangedPCR(t *testing.T) {
	sw := tpmtest.Start(t)
	file := filepath.Join(t.TempDir(), "id")
	run := func(args ...string) string {
		t.Helper()
		out, err := program(t, append([]string{"--tpm", sw.Address()}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	run("keygen", "-N", "", "--pcr", "7", "-f", file)
	if out := run("inspect", file+".tpm"); !strings.Contains(out, "they match\n") {
		t.Errorf("inspect says\n%s", out)
	}
	sw.Tool("tpm2_pcrextend", "7:sha256="+strings.Repeat("5a", 32))
	if out := run("keygen", "-N", "", "--pcr", "7", "-f", file+"2"); strings.Contains(out, "warning") {
		t.Errorf("keygen with a PCR that is in use warns:\n%s", out)
	}
	out := run("inspect", file+".tpm")
	for _, want := range []string{
		"PCRs now:      they do not match: PCR 7 (sha256) has changed since the key was made\n",
		"way out:       what is recorded there (7: secure boot and its keys) differs",
		"can be used:   yes\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("inspect does not say %q:\n%s", want, out)
		}
	}
	if out := run("inspect", "--json", file+".tpm"); !strings.Contains(out, `"match": false`) {
		t.Errorf("inspect --json says\n%s", out)
	}
}

// TestInspectPolicies shows what is no PCR of one SHA-256 bank, without a TPM.
func TestInspectPolicies(t *testing.T) {
	key, err := keyfile.ReadFile("../../keyfile/testdata/openssl-p256.tpm")
	if err != nil {
		t.Fatal(err)
	}
	digest := bytes.Repeat([]byte{0xd1}, 32)
	two := append([]byte{0, 0, 0, 2, 0, 4, 3, 1, 0, 0, 0, 0x0b, 3, 0x80, 8, 0}, digest...)
	key.Public.AuthPolicy = digest
	key.Policy = []keyfile.Policy{{CommandCode: 0x151}, {CommandCode: keyfile.PolicyPCR, CommandPolicy: two}}
	key.AuthPolicy = []keyfile.AuthPolicy{
		{Name: "kernel\x1b[2J", Policy: []keyfile.Policy{keyfile.PCRSelection{Hash: 0x0b, PCRs: []int{11}}.Policy(digest)}},
		{Policy: []keyfile.Policy{keyfile.PCRSelection{Hash: 0x0b, PCRs: []int{4}}.Policy(digest)}},
	}
	list, err := boundTo(key)
	if err != nil {
		t.Fatal(err)
	}
	hex := strings.Repeat("d1", 32)
	for i, want := range []string{
		"PCRs 0, 7, 11 (0: firmware; 7: secure boot and its keys; 11: kernel, as systemd-stub records it), digest " + hex + ", banks sha1:0+sha256:7,11",
		"by the signed policy kernel[2J: PCR 11 (11: kernel, as systemd-stub records it), digest " + hex,
		"by a signed policy: PCR 4 (4: boot loader), digest " + hex,
	} {
		if i >= len(list) || list[i].words() != want {
			t.Errorf("%d of %d: %q, want %q", i, len(list), list[min(i, len(list)-1)].words(), want)
		}
	}
	key.Policy[1].CommandPolicy = two[:20]
	if _, err := boundTo(key); err == nil {
		t.Error("a damaged policy is shown")
	}
}
