package upstream

import (
	"bytes"
	"testing"
	"testing/iotest"

	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// FuzzList checks that the keys of a list fill its message.
func FuzzList(f *testing.F) {
	whole := listOf("blob", "comment", "other", "", "blob", "again", "", "none")[wire.LengthSize:]
	for n := range len(whole) + 1 {
		f.Add(whole[:n])
	}
	f.Add(append(bytes.Clone(whole), 0))
	f.Add([]byte{wire.MsgIdentitiesAnswer, 255, 255, 255, 255})
	f.Add([]byte{wire.MsgIdentitiesAnswer, 0x20, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := parseList(b, "up")
		if err != nil || b[0] == wire.MsgFailure {
			return
		}
		size := 5
		for _, k := range keys {
			if k.Blob == "" || k.Agent != "up" {
				t.Fatalf("key %q", k)
			}
			size += 8 + len(k.Blob) + len(k.Comment)
		}
		if size > len(b) {
			t.Fatalf("%d bytes of keys in %d", size, len(b))
		}
	})
}

// FuzzAnswer checks that an answer is one whole frame, however it arrives.
func FuzzAnswer(f *testing.F) {
	f.Add(wire.Success())
	f.Add(wire.Failure()[:4])
	f.Add(append(wire.Success(), 0))
	f.Add([]byte{0, 0, 0, 0, 5})
	f.Add([]byte{255, 255, 255, 255, 5})
	f.Add(wire.Frame(bytes.Repeat([]byte{12}, 3*firstRead)))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := readAnswer(bytes.NewReader(b))
		if len(b) <= wire.LengthSize || len(b) > wire.LengthSize+wire.MaxMessage || !bytes.Equal(wire.Frame(b[wire.LengthSize:]), b) {
			// Extra bytes are noticed only if they arrive together with the answer.
			if err == nil && !bytes.HasPrefix(b, got) {
				t.Fatalf("took %x for an answer", b)
			}
			return
		}
		if err != nil || !bytes.Equal(got, b) {
			t.Fatalf("%x: %v", b, err)
		}
		if got, err = readAnswer(iotest.OneByteReader(bytes.NewReader(b))); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("%x byte by byte: %v", b, err)
		}
	})
}

// The benchmarks compare the same request, sent directly and relayed.

func BenchmarkRelayList(b *testing.B) { benchmarkUpstream(b, sshtest.ListThem) }

func BenchmarkRelaySign(b *testing.B) {
	benchmarkUpstream(b, sshtest.SignMessage(sshtest.PublicOf(sshtest.P256()).Marshal(), []byte("data"), 0))
}

func benchmarkUpstream(b *testing.B, request []byte) {
	up := sshtest.StartAgent(b)
	up.Add(b, "key", sshtest.P256())
	b.Run("direct", func(b *testing.B) {
		nc := sshtest.DialUnix(b, up.Path)
		for b.Loop() {
			if m := sshtest.Exchange(b, nc, request); m[0] == wire.MsgFailure {
				b.Fatal("refused")
			}
		}
	})
	b.Run("relayed", func(b *testing.B) {
		r, _ := relayTo(b, up.Path)
		blob := blobOf(sshtest.PublicOf(sshtest.P256()))
		r.List(b.Context())
		for b.Loop() {
			if request[0] == wire.MsgRequestIdentities {
				if len(r.List(b.Context())) != 1 {
					b.Fatal("no list")
				}
			} else if _, ok, err := r.ForKey(b.Context(), blob, request); !ok {
				b.Fatal(err)
			}
		}
	})
}
