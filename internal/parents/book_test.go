package parents

import (
	"os"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/tcti"
)

// Machines that share a home directory have a TPM each, by whatever name.
func TestMemoryIsOfOneMachine(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Skip(err)
	}
	for address, want := range map[string]string{
		"auto": "/dev/tpmrm0@" + host, "device:/dev/tpmrm0": "/dev/tpmrm0@" + host, "device:/dev/tpm1": "/dev/tpm1@" + host,
		"software": "software", "swtpm:path=/s": "swtpm:path=/s",
	} {
		addr, err := tcti.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		if got := NewBook(Store{}, addr, nil).TPM; got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
}
