package sshtest

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// HolderEnv is set in the environment of a child that StartHolder has started.
const HolderEnv = "AGENT_TEST_HOLDER"

// ReadFrame reads a request from the standard input into one slice, which the
// caller overwrites. It buffers nothing.
func ReadFrame(t *testing.T) []byte {
	var length [4]byte
	if _, err := io.ReadFull(os.Stdin, length[:]); err != nil {
		t.Fatal(err)
	}
	request := make([]byte, binary.BigEndian.Uint32(length[:]))
	if _, err := io.ReadFull(os.Stdin, request); err != nil {
		t.Fatal(err)
	}
	return request
}

// A Holder is a child process whose memory a test searches. It runs TestHolder of
// the same package.
type Holder struct {
	t     *testing.T
	PID   int
	stdin io.Writer
	lines *bufio.Scanner
}

// StartHolder starts a Holder.
func StartHolder(t *testing.T) *Holder {
	t.Helper()
	cmd := exec.Command(Must(os.Executable()), "-test.run=^TestHolder$")
	cmd.Env = append(os.Environ(), HolderEnv+"=1")
	stdin := Must(cmd.StdinPipe())
	stdout := Must(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		io.Copy(io.Discard, stdout)
		if err := cmd.Wait(); err != nil {
			t.Error("the child:", err)
		}
	})
	return &Holder{t, cmd.Process.Pid, stdin, bufio.NewScanner(stdout)}
}

// Do sends a command, and returns the words of the answer that follow want.
func (h *Holder) Do(command string, want string) []string {
	h.t.Helper()
	if _, err := io.WriteString(h.stdin, command); err != nil {
		h.t.Fatal(err)
	}
	for h.lines.Scan() {
		if words := strings.Fields(h.lines.Text()); len(words) > 0 && words[0] == want {
			return words[1:]
		}
		h.t.Log("the child:", h.lines.Text())
	}
	h.t.Fatal("the child has ended")
	return nil
}

// windowSize is the size of the pieces of secrets that are searched for. A window
// is looked up by its first bytes.
const windowSize = 16

type lookup [8]byte

// A Wanted has the pieces of secrets that are searched for.
type Wanted struct {
	windows map[lookup]window
	filter  [1 << 16]bool // the last two bytes of each lookup
}

type window struct {
	name string
	all  [windowSize]byte
}

// Want adds a number: its big-endian bytes, and the limbs that it has in the memory
// of a little-endian machine.
func (w *Wanted) Want(name string, number []byte) {
	if w.windows == nil {
		w.windows = map[lookup]window{}
	}
	reversed := slices.Clone(number)
	slices.Reverse(reversed)
	w.pieces(name, number)
	w.pieces(name+" in limbs", reversed)
}

func (w *Wanted) pieces(name string, b []byte) {
	for ; len(b) >= windowSize; b = b[windowSize/2:] {
		w.windows[lookup(b)] = window{name, [windowSize]byte(b)}
		w.filter[filterOf(b)] = true
	}
}

// filterOf returns the last two bytes of the lookup that b begins with. The first
// ones are zero in pieces that begin with a length, and most memory is zero.
func filterOf(b []byte) uint16 { return binary.LittleEndian.Uint16(b[6:]) }

// Find calls found for each piece in b. It is hidden from the race detector, which
// would check each byte.
//
//go:norace
func (w *Wanted) Find(b []byte, found func(offset int, name string)) {
	for i := range max(0, len(b)-windowSize+1) {
		if !w.filter[uint16(b[i+6])|uint16(b[i+7])<<8] {
			continue
		}
		if piece, ok := w.windows[lookup(b[i:])]; ok && string(piece.all[:]) == string(b[i:i+windowSize]) {
			found(i, piece.name)
		}
	}
}

// A Residue counts the pieces that were found, by number and place.
type Residue map[string]int

func (r Residue) String() string {
	var b strings.Builder
	for _, where := range slices.Sorted(maps.Keys(r)) {
		fmt.Fprintf(&b, "\n\t%d pieces of %s", r[where], where)
	}
	return b.String()
}

// Search searches all memory of a process. in has what was found in one of the
// places, and elsewhere the rest.
func (w *Wanted) Search(t *testing.T, pid int, places []Region) (in, elsewhere Residue) {
	t.Helper()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	in, elsewhere = Residue{}, Residue{}
	total := 0
	for _, r := range Regions(t, pid) {
		if !r.Readable || !r.Present || r.End-r.Start > maxRegion || r.Name == "[vvar]" {
			continue
		}
		b := make([]byte, r.End-r.Start)
		n, err := mem.ReadAt(b, int64(r.Start))
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("reading %x-%x %s: %v", r.Start, r.End, r.Name, err)
		}
		total += n
		w.Find(b[:n], func(offset int, name string) {
			at := r.Start + uintptr(offset)
			if slices.ContainsFunc(places, func(p Region) bool { return p.Has(at) }) {
				in[name]++
			} else {
				elsewhere[name+" in "+cmp.Or(r.Name, "the heap")]++
			}
		})
	}
	t.Logf("searched %d MiB", total>>20)
	return in, elsewhere
}

// maxRegion excludes the terabytes that the race detector reserves for itself.
const maxRegion = 1 << 32

// SecretsOf returns the numbers of a key that must not be found, by name.
func SecretsOf(s crypto.Signer) map[string][]byte {
	switch k := s.(type) {
	case *rsa.PrivateKey:
		all := map[string][]byte{}
		for name, x := range map[string]*big.Int{
			"d": k.D, "p": k.Primes[0], "q": k.Primes[1],
			"d mod p-1": k.Precomputed.Dp, "d mod q-1": k.Precomputed.Dq, "1/q mod p": k.Precomputed.Qinv,
		} {
			all["rsa "+name] = x.Bytes()
		}
		return all
	case *ecdsa.PrivateKey:
		d := Must(k.Bytes())
		return map[string][]byte{fmt.Sprint(k.Curve.Params().Name, " d"): new(big.Int).SetBytes(d).Bytes()}
	case ed25519.PrivateKey:
		return map[string][]byte{"ed25519 seed": k.Seed()}
	}
	panic(fmt.Sprintf("a key of type %T", s))
}

// DerivedFrom returns the numbers that are computed from a key when it signs.
func DerivedFrom(s crypto.Signer) map[string][]byte {
	if k, ok := s.(ed25519.PrivateKey); ok {
		expanded := sha512.Sum512(k.Seed())
		return map[string][]byte{"ed25519 scalar": expanded[:32], "ed25519 prefix": expanded[32:]}
	}
	return nil
}

// Framed adds the beginning of a number in a request: its length and its first
// bytes, which are next to each other only in copies of the request.
func (w *Wanted) Framed(name string, request, number []byte) {
	at := bytes.Index(request, number)
	if at < 0 {
		return // it is computed from the request
	}
	for at > 0 && request[at-1] == 0 && binary.BigEndian.Uint32(request[at-4:]) != uint32(len(number)) {
		at-- // an mpint may have a zero in front
	}
	piece := request[at-4 : at-4+windowSize]
	w.windows[lookup(piece)] = window{name + " in a request", [windowSize]byte(piece)}
	w.filter[filterOf(piece)] = true
}

// RequestsOnly returns what was found of requests: see Framed.
func RequestsOnly(found Residue) Residue {
	only := Residue{}
	for name, n := range found {
		if strings.Contains(name, " in a request") {
			only[name] = n
		}
	}
	return only
}
