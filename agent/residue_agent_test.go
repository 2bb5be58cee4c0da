package agent

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// framed are pieces that a number begins with in a request and nowhere else:
// its length and its first bytes. What finds them has found a copy of the
// request, not what was computed from it.
func (w *wanted) framed(name string, request, number []byte) {
	at := bytes.Index(request, number)
	if at < 0 {
		return // it is computed
	}
	for at > 0 && request[at-1] == 0 && binary.BigEndian.Uint32(request[at-4:]) != uint32(len(number)) {
		at-- // an mpint may have a zero in front
	}
	piece := request[at-4 : at-4+windowSize]
	w.windows[lookup(piece)] = window{name + " in a request", [windowSize]byte(piece)}
	w.begins[binary.LittleEndian.Uint16(piece)] = true
}

// requestsOnly leaves away what is not from a request.
func requestsOnly(found residue) residue {
	only := residue{}
	for name, n := range found {
		if strings.Contains(name, " in a request") {
			only[name] = n
		}
	}
	return only
}

// TestResidueOfAgent is TestResidue with all of the agent in between: of the
// requests themselves nothing is left in any build, once they are answered or
// the client is gone.
func TestResidueOfAgent(t *testing.T) {
	h := startHolder(t)
	path := h.do("A", "serving")[0]
	nc, gone := dialUnix(t, path), dialUnix(t, path)
	w := &wanted{windows: map[lookup]window{}}
	long := bytes.Repeat([]byte("long "), 2<<10)
	var all [][]byte
	blobs := map[string][]byte{}
	for name, s := range signers() {
		request := adding(s, nil)
		for name, number := range secrets(s) {
			w.want(name, number)
			w.framed(name, request, number)
		}
		for name, number := range derived(s) {
			w.want(name, number)
		}
		longer := bytes.Clone(request[:len(request)-len("me@here")-4])
		longer = appendString(longer, string(long)) // it comes in pieces
		refused := append(bytes.Clone(request), 99)
		all = append(all, request, adding(s, certFor(s)), longer, refused, refused[:len(refused)-20])
		blobs[name] = publicOf(s).Marshal()
	}
	found := residue{}
	w.find(bytes.Join(all, nil), func(_ int, name string) { found[name]++ })
	if n := len(requestsOnly(found)); n != 1+3+4 { // Ed25519, ECDSA, RSA
		t.Fatalf("the search finds %d numbers in the requests themselves: %s", n, found)
	}

	send(t, gone, all[0]) // answered, and read no further
	gone.Write(frame(all[1])[:len(all[1])-1])
	recv(t, gone)
	send(t, nc, all...) // one behind the other, read ahead
	for range all {
		recv(t, nc)
	}
	for name, blob := range blobs {
		if answer := ask(t, nc, signMessage(blob, []byte("data"), flagRSASHA256)); answer[0] != msgSignResponse {
			t.Errorf("%s: %x", name, answer)
		}
	}
	gone.CloseWrite()
	isClosed(t, gone)
	_, elsewhere := w.search(t, h.pid, nil)
	if left := requestsOnly(elsewhere); len(left) > 0 {
		t.Errorf("answered, but still there: %s", left)
	}
	if len(elsewhere) == 0 {
		t.Error("the keys are not found where they are used")
	}
	if answer := ask(t, nc, []byte{msgRemoveAllIdentities}); !bytes.Equal(answer, succeeded) {
		t.Fatalf("remove all: %x", answer)
	}
	for tries := 0; len(elsewhere) > 0 && (tries == 0 || eraseAll && tries < 10); tries++ {
		h.do("g", "collected")
		h.do("g", "collected")
		_, elsewhere = w.search(t, h.pid, nil)
	}
	if eraseAll && len(elsewhere) > 0 {
		t.Errorf("removed and collected, but still there: %s", elsewhere)
	}
}
