package agent

import (
	"bytes"
	"testing"
	"testing/iotest"
)

// FuzzCatalog: what is taken for a list is one to the last byte.
func FuzzCatalog(f *testing.F) {
	whole := listOf(listed{"blob", "comment"}, listed{"other", ""}, listed{"blob", "again"}, listed{"", "none"})[lengthSize:]
	for n := range len(whole) + 1 {
		f.Add(whole[:n])
	}
	f.Add(append(bytes.Clone(whole), 0))
	f.Add([]byte{msgIdentitiesAnswer, 255, 255, 255, 255})
	f.Add([]byte{msgIdentitiesAnswer, 0x20, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseCatalog(b)
		if err != nil {
			return
		}
		if c.raw != string(b) || len(c.keys) != len(c.blobs) {
			t.Fatalf("%d keys, %d blobs", len(c.keys), len(c.blobs))
		}
		size := 5
		for _, k := range c.keys {
			if k.blob == "" || !c.blobs[k.blob] {
				t.Fatalf("key %q", k)
			}
			size += 8 + len(k.blob) + len(k.comment)
		}
		if size > len(b) {
			t.Fatalf("%d bytes of keys in %d", size, len(b))
		}
	})
}

// FuzzAnswer: an answer is one whole frame, however it comes.
func FuzzAnswer(f *testing.F) {
	f.Add(success())
	f.Add(failure()[:4])
	f.Add(append(success(), 0))
	f.Add([]byte{0, 0, 0, 0, 5})
	f.Add([]byte{255, 255, 255, 255, 5})
	f.Add(frame(bytes.Repeat([]byte{12}, 3*firstRead)))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := readAnswer(bytes.NewReader(b))
		if len(b) <= lengthSize || len(b) > lengthSize+maxMessage || !bytes.Equal(frame(b[lengthSize:]), b) {
			// Bytes behind it are seen if they have come with it.
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

// The same requests, directly and relayed.

func BenchmarkRelayList(b *testing.B) { benchmarkUpstream(b, listThem) }

func BenchmarkRelaySign(b *testing.B) {
	benchmarkUpstream(b, signMessage(publicOf(p256()).Marshal(), []byte("data"), 0))
}

func benchmarkUpstream(b *testing.B, request []byte) {
	up := startAgent(b)
	up.add(b, "key", p256())
	b.Run("direct", func(b *testing.B) {
		nc := dialUnix(b, up.path)
		for b.Loop() {
			if m := ask(b, nc, request); m[0] == msgFailure {
				b.Fatal("refused")
			}
		}
	})
	b.Run("relayed", func(b *testing.B) {
		r, _ := relayTo(b, up.path)
		blob := blobOf(publicOf(p256()))
		r.list(b.Context())
		for b.Loop() {
			if request[0] == msgRequestIdentities {
				if len(r.list(b.Context())) != 1 {
					b.Fatal("no list")
				}
			} else if _, ok, err := r.forKey(b.Context(), blob, request); !ok {
				b.Fatal(err)
			}
		}
	})
}
