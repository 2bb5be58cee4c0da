package privkey

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// residueEnv names the file that the child of TestResidue reads a key from.
const residueEnv = "PRIVKEY_TEST_RESIDUE"

// TestResidue looks for decrypted files in all the memory of a process that
// has read them: the test binary, started again. The numbers of the key are
// there, being what was asked for. What is looked for is how the file puts
// them together.
func TestResidue(t *testing.T) {
	for name, traces := range map[string][][]byte{
		"p256-openssh":           textTraces(t, "p256-openssh"),
		"p256-utf16":             textTraces(t, "p256-openssh"),
		"rsa-pem":                append(textTraces(t, "rsa-pem"), primeTrace(t, "rsa-pem")),
		"rsa-openssh-aes256-ctr": {primeTrace(t, "rsa-openssh")},
		"rsa-pbes2":              {primeTrace(t, "rsa-pkcs8")},
		"rsa-dek":                {primeTrace(t, "rsa-pem")},
	} {
		memory := memoryWith(t, name)
		for i, trace := range traces {
			if n := bytes.Count(memory, trace); n > 0 {
				t.Errorf("%s: part %d of the file is in memory %d times", name, i, n)
			}
		}
		if !bytes.Contains(memory, limbs(t, name)) {
			t.Fatalf("%s: the key is not in %d octets of memory, which are not all of it", name, len(memory))
		}
	}
}

// limbs are a secret number of the key as package math/big has it, on a machine
// that is little-endian.
func limbs(t *testing.T, name string) []byte {
	t.Helper()
	k, err := parseWith(golden(t, name), secret)
	if err != nil {
		t.Fatal(err)
	}
	var number []byte
	switch k := k.Private.(type) {
	case *rsa.PrivateKey:
		number = k.Primes[0].Bytes()
	case *ecdsa.PrivateKey:
		if number, err = k.Bytes(); err != nil {
			t.Fatal(err)
		}
	}
	slices.Reverse(number)
	return number
}

// textTraces are the lines in the middle of a file, which have the key.
func textTraces(t *testing.T, name string) [][]byte {
	t.Helper()
	lines := bytes.Split(golden(t, name), []byte("\n"))
	return lines[3 : len(lines)-3]
}

// primeTrace is the end of one number in a file, and the beginning of the prime
// behind it.
func primeTrace(t *testing.T, name string) []byte {
	t.Helper()
	k, err := Parse(golden(t, name), nil)
	if err != nil {
		t.Fatal(err)
	}
	content := lastBlock(golden(t, name)).Bytes
	i := bytes.Index(content, k.Private.(*rsa.PrivateKey).Primes[0].Bytes())
	if i < 16 {
		t.Fatalf("%s has the prime at octet %d", name, i)
	}
	return content[i-16 : i+8]
}

// memoryWith returns all the memory of a process that has read a file.
func memoryWith(t *testing.T, name string) []byte {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestResidueChild$")
	cmd.Env = append(os.Environ(), residueEnv+"="+name)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "read\n" {
		t.Fatalf("%s: %q, %v", name, line, err)
	}
	return memoryOf(t, cmd.Process.Pid)
}

// TestResidueChild is that other process.
func TestResidueChild(t *testing.T) {
	name := os.Getenv(residueEnv)
	if name == "" {
		t.Skip("runs as a child of TestResidue")
	}
	data, err := ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	k, err := parseWith(data, secret)
	clear(data)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("read")
	io.Copy(io.Discard, os.Stdin)
	checkWhole(t, k)
}

// memoryOf reads what a process can write to.
func memoryOf(t *testing.T, pid int) []byte {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	var all []byte
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		// Go's heap grows by 64 MiB, and is smaller here. What is larger is the
		// race detector's own, in which there are no contents of ours.
		if !strings.HasPrefix(mode, "rw") || to-from > 64<<20 {
			continue
		}
		part := make([]byte, to-from)
		n, _ := mem.ReadAt(part, int64(from)) // some pages cannot be read by anybody
		all = append(all, part[:n]...)
	}
	return all
}
