package inspect

import (
	"bytes"
	"strings"
	"testing"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// TestInspectPolicies shows policies of several banks, and signed ones, without a TPM.
func TestInspectPolicies(t *testing.T) {
	t.Parallel()
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
