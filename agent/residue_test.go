package agent

import (
	"bufio"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
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
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// These tests look for private keys in all the memory of a process that has
// held them: the test binary, started again, to which the keys are sent as a
// client would send them. It holds nothing to compare with; this process does.

const holderEnv = "AGENT_TEST_HOLDER"

// TestHolder is that other process. Each command is one byte.
func TestHolder(t *testing.T) {
	if os.Getenv(holderEnv) == "" {
		t.Skip("runs as a child of TestResidue")
	}
	var keys []*addition
	for {
		var command [1]byte
		if _, err := os.Stdin.Read(command[:]); err != nil {
			return
		}
		switch command[0] {
		case 'a': // a frame: holds the key
			request := readFrame(t)
			a := added(t, request)
			clear(request)
			keys = append(keys, a)
			fmt.Println("held", address(a.key.memory.b), len(a.key.memory.b))
		case 's': // signs with all keys
			for _, a := range keys {
				signsWith(t, a.key, a.public)
			}
			fmt.Println("signed")
		case 'w': // wipes them
			for _, a := range keys {
				a.key.wipe()
			}
			fmt.Println("wiped")
		case 'A': // serves an agent
			fmt.Println("serving", serve(t, Config{Source: fixed()}).path)
		case 'g':
			runtime.GC()
			fmt.Println("collected")
		}
		if t.Failed() {
			return
		}
	}
}

// readFrame reads a request into one piece of memory, which is overwritten
// when the test has parsed it. Nothing is buffered on the way.
func readFrame(t *testing.T) []byte {
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

type holder struct {
	t     *testing.T
	pid   int
	stdin io.Writer
	lines *bufio.Scanner
}

func startHolder(t *testing.T) *holder {
	t.Helper()
	cmd := exec.Command(must(os.Executable()), "-test.run=^TestHolder$")
	cmd.Env = append(os.Environ(), holderEnv+"=1")
	stdin := must(cmd.StdinPipe())
	stdout := must(cmd.StdoutPipe())
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
	return &holder{t, cmd.Process.Pid, stdin, bufio.NewScanner(stdout)}
}

// do sends a command and returns the answer, which begins with want.
func (h *holder) do(command string, want string) []string {
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

// add has the holder hold a key, and returns where.
func (h *holder) add(request []byte) region {
	h.t.Helper()
	words := h.do("a"+string(frame(request)), "held")
	start := must(strconv.ParseUint(words[0], 10, 64))
	return region{start: uintptr(start), end: uintptr(start) + uintptr(must(strconv.Atoi(words[1])))}
}

// region is a part of a process's memory.
type region struct {
	start, end uintptr
	name       string
	present    bool // some of it is in use
	readable   bool
	flags      string // VmFlags in /proc/PID/smaps
}

func (r region) has(a uintptr) bool { return r.start <= a && a < r.end }

func regions(t testing.TB, pid int) (all []region) {
	t.Helper()
	smaps := must(os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid)))
	for line := range strings.Lines(string(smaps)) {
		words := strings.Fields(line)
		start, end, isRange := strings.Cut(words[0], "-")
		switch {
		case isRange:
			r := region{name: strings.Join(words[5:], " "), readable: words[1][0] == 'r'}
			r.start = uintptr(must(strconv.ParseUint(start, 16, 64)))
			r.end = uintptr(must(strconv.ParseUint(end, 16, 64)))
			all = append(all, r)
		case words[0] == "Rss:" || words[0] == "Swap:":
			all[len(all)-1].present = all[len(all)-1].present || words[1] != "0"
		case words[0] == "VmFlags:":
			all[len(all)-1].flags = strings.Join(words[1:], " ")
		}
	}
	return all
}

// windowSize is how much of a secret must be in one piece to count as found.
// With the first bytes of each piece a window is looked up.
const windowSize = 16

type lookup [8]byte

// wanted are the pieces of secrets that are searched for.
type wanted struct {
	windows map[lookup]window
	begins  [1 << 16]bool // the first two bytes of a piece
}

type window struct {
	name string
	all  [windowSize]byte
}

// want adds a number, in big-endian bytes, and as it is in memory in limbs of
// a machine that is little-endian.
func (w *wanted) want(name string, number []byte) {
	if w.windows == nil {
		w.windows = map[lookup]window{}
	}
	reversed := slices.Clone(number)
	slices.Reverse(reversed)
	w.pieces(name, number)
	w.pieces(name+" in limbs", reversed)
}

func (w *wanted) pieces(name string, b []byte) {
	for ; len(b) >= windowSize; b = b[windowSize/2:] {
		w.windows[lookup(b)] = window{name, [windowSize]byte(b)}
		w.begins[binary.LittleEndian.Uint16(b)] = true
	}
}

// find returns the pieces in b. The race detector would look at each byte, too.
//
//go:norace
func (w *wanted) find(b []byte, found func(offset int, name string)) {
	for i := range max(0, len(b)-windowSize+1) {
		if !w.begins[uint16(b[i])|uint16(b[i+1])<<8] {
			continue
		}
		if piece, ok := w.windows[lookup(b[i:])]; ok && string(piece.all[:]) == string(b[i:i+windowSize]) {
			found(i, piece.name)
		}
	}
}

// residue is what was found where: names of numbers, with how many pieces.
type residue map[string]int

func (r residue) String() string {
	var b strings.Builder
	for _, where := range slices.Sorted(maps.Keys(r)) {
		fmt.Fprintf(&b, "\n\t%d pieces of %s", r[where], where)
	}
	return b.String()
}

// search looks through all the memory of a process. What is in one of the
// places is counted as in there, the rest by the kind of memory.
func (w *wanted) search(t *testing.T, pid int, places []region) (in, elsewhere residue) {
	t.Helper()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	in, elsewhere = residue{}, residue{}
	total := 0
	for _, r := range regions(t, pid) {
		if !r.readable || !r.present || r.end-r.start > maxRegion || r.name == "[vvar]" {
			continue
		}
		b := make([]byte, r.end-r.start)
		n, err := mem.ReadAt(b, int64(r.start))
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("reading %x-%x %s: %v", r.start, r.end, r.name, err)
		}
		total += n
		w.find(b[:n], func(offset int, name string) {
			at := r.start + uintptr(offset)
			if slices.ContainsFunc(places, func(p region) bool { return p.has(at) }) {
				in[name]++
			} else {
				elsewhere[name+" in "+cmp.Or(r.name, "the heap")]++
			}
		})
	}
	t.Logf("searched %d MiB", total>>20)
	return in, elsewhere
}

// maxRegion leaves away what the race detector reserves for itself, which has
// no data of ours and takes terabytes.
const maxRegion = 1 << 32

// secrets are the numbers of a key that must not be found.
func secrets(s crypto.Signer) map[string][]byte {
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
		d := must(k.Bytes())
		return map[string][]byte{fmt.Sprint(k.Curve.Params().Name, " d"): new(big.Int).SetBytes(d).Bytes()}
	case ed25519.PrivateKey:
		return map[string][]byte{"ed25519 seed": k.Seed()}
	}
	panic(fmt.Sprintf("a key of type %T", s))
}

// derived are what is computed from a key only when it signs.
func derived(s crypto.Signer) map[string][]byte {
	if k, ok := s.(ed25519.PrivateKey); ok {
		expanded := sha512.Sum512(k.Seed())
		return map[string][]byte{"ed25519 scalar": expanded[:32], "ed25519 prefix": expanded[32:]}
	}
	return nil
}

// TestResidue: of keys that were removed nothing is left where they were held,
// and in a build that erases temporaries nothing at all. That the search finds
// what is there is shown before.
func TestResidue(t *testing.T) {
	h := startHolder(t)
	w := new(wanted)
	var places []region
	var names []string
	for _, s := range signers() {
		for name, number := range secrets(s) {
			w.want(name, number)
			names = append(names, name)
		}
		for name, number := range derived(s) {
			w.want(name, number)
		}
		for _, cert := range []*ssh.Certificate{nil, certFor(s)} {
			places = append(places, h.add(adding(s, cert)))
		}
	}
	h.do("s", "signed")
	in, elsewhere := w.search(t, h.pid, places)
	for _, name := range names {
		if in[name] == 0 {
			t.Errorf("%s is not found where it is held", name)
		}
	}
	t.Logf("left beside by parsing and signing: %s", elsewhere)

	h.do("w", "wiped")
	in, elsewhere = w.search(t, h.pid, places)
	if len(in) > 0 {
		t.Errorf("wiped, but left where it was held: %s", in)
	}
	// What the standard library remembers of a key goes in the collection
	// after that of the key, and the collector takes its time.
	for tries := 0; len(elsewhere) > 0 && (tries == 0 || eraseAll && tries < 10); tries++ {
		h.do("g", "collected")
		h.do("g", "collected")
		_, elsewhere = w.search(t, h.pid, places)
	}
	switch {
	case len(elsewhere) == 0:
		t.Log("nothing is left")
	case eraseAll:
		t.Errorf("wiped and collected, but still there: %s", elsewhere)
	default:
		t.Logf("left in a build that does not erase temporaries: %s", elsewhere)
	}
}

// TestResidueIsFound: the search finds what nobody has wiped, in the order of
// either kind, and in part; and nothing that is not there.
func TestResidueIsFound(t *testing.T) {
	secret := make([]byte, 40)
	rand.Read(secret)
	w := new(wanted)
	w.want("number", secret)
	found := residue{}
	count := func(_ int, name string) { found[name]++ }
	b := make([]byte, 1000)
	w.find(b, count)
	copy(b[3:], secret[8:30])
	w.find(b, count)
	slices.Reverse(b)
	w.find(b, count)
	if found["number"] != 1 || found["number in limbs"] != 1 || len(found) != 2 {
		t.Error(found)
	}
}
