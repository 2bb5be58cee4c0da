package agent

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// TestResidueOfAgent checks that no copies of private keys are left in the
// memory of an agent. In each build the requests must be gone as soon as
// they are answered or the client has gone.
func TestResidueOfAgent(t *testing.T) {
	t.Parallel()
	h := sshtest.StartHolder(t)
	path := h.Do("A", "serving")[0]
	nc, gone := sshtest.DialUnix(t, path), sshtest.DialUnix(t, path)
	w := new(sshtest.Wanted)
	long := bytes.Repeat([]byte("long "), 2<<10)
	var all [][]byte
	blobs := map[string][]byte{}
	for name, s := range sshtest.Signers() {
		request := sshtest.Adding(s, nil)
		for name, number := range sshtest.SecretsOf(s) {
			w.Want(name, number)
			w.Framed(name, request, number)
		}
		for name, number := range sshtest.DerivedFrom(s) {
			w.Want(name, number)
		}
		longer := bytes.Clone(request[:len(request)-len("me@here")-4])
		longer = wire.AppendString(longer, string(long)) // read in pieces
		refused := append(bytes.Clone(request), 99)
		all = append(all, request, sshtest.Adding(s, sshtest.CertFor(s)), longer, refused, refused[:len(refused)-20])
		blobs[name] = sshtest.PublicOf(s).Marshal()
	}
	found := sshtest.Residue{}
	w.Find(bytes.Join(all, nil), func(_ int, name string) { found[name]++ })
	if n := len(sshtest.RequestsOnly(found)); n != 1+3+4 { // Ed25519, ECDSA, RSA
		t.Fatalf("the search finds %d numbers in the requests themselves: %s", n, found)
	}

	sshtest.Send(t, gone, all[0]) // answered; the next one stays incomplete
	gone.Write(wire.Frame(all[1])[:len(all[1])-1])
	sshtest.Recv(t, gone)
	sshtest.Send(t, nc, all...) // all at once, so that they are read ahead
	for range all {
		sshtest.Recv(t, nc)
	}
	for name, blob := range blobs {
		if answer := sshtest.Exchange(t, nc, sshtest.SignMessage(blob, []byte("data"), flagRSASHA256)); answer[0] != wire.MsgSignResponse {
			t.Errorf("%s: %x", name, answer)
		}
	}
	gone.CloseWrite()
	sshtest.IsClosed(t, gone)
	_, elsewhere := w.Search(t, h.PID, nil)
	if left := sshtest.RequestsOnly(elsewhere); len(left) > 0 {
		t.Errorf("answered, but still there: %s", left)
	}
	if len(elsewhere) == 0 {
		t.Error("the keys are not found where they are used")
	}
	if answer := sshtest.Exchange(t, nc, []byte{wire.MsgRemoveAllIdentities}); !bytes.Equal(answer, sshtest.Succeeded) {
		t.Fatalf("remove all: %x", answer)
	}
	for tries := 0; len(elsewhere) > 0 && (tries == 0 || eraseAll && tries < 10); tries++ {
		h.Do("g", "collected")
		h.Do("g", "collected")
		_, elsewhere = w.Search(t, h.PID, nil)
	}
	if eraseAll && len(elsewhere) > 0 {
		t.Errorf("removed and collected, but still there: %s", elsewhere)
	}
}

// TestHolder is the process that TestResidueOfAgent searches. Each command
// is one byte.
func TestHolder(t *testing.T) {
	if os.Getenv(sshtest.HolderEnv) == "" {
		t.Skip("runs as a child of TestResidueOfAgent")
	}
	for {
		var command [1]byte
		if _, err := os.Stdin.Read(command[:]); err != nil {
			return
		}
		switch command[0] {
		case 'A': // serves an agent
			fmt.Println("serving", serve(t, Config{Sources: []Source{fixed()}}).path)
		case 'g':
			runtime.GC()
			fmt.Println("collected")
		}
	}
}
