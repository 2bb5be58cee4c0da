package keydir

import (
	"fmt"
	"os"
	"testing"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

var sizes = []int{1, 1000, 10_000}

// fill makes n keys, each with its .pub.
func fill(b *testing.B, n int) string {
	b.Helper()
	dir := b.TempDir()
	for i := range n {
		k := newKey(b)
		must(b, os.WriteFile(fmt.Sprintf("%s/id%05d.tpm", dir, i), k.pem, 0o600))
		must(b, os.WriteFile(fmt.Sprintf("%s/id%05d.pub", dir, i), []byte(k.line("bench")), 0o600))
	}
	return dir
}

func benchmark(b *testing.B, f func(b *testing.B, dir string)) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := fill(b, n)
			b.ReportAllocs()
			b.ResetTimer()
			f(b, dir)
		})
	}
}

// BenchmarkOpen measures a start.
func BenchmarkOpen(b *testing.B) {
	benchmark(b, func(b *testing.B, dir string) {
		for b.Loop() {
			x, err := Open([]string{dir}, nil)
			must(b, err)
			must(b, x.Close())
		}
	})
}

// BenchmarkEntries measures a call when nothing has changed.
func BenchmarkEntries(b *testing.B) {
	benchmark(b, func(b *testing.B, dir string) {
		x, err := Open([]string{dir}, nil)
		must(b, err)
		defer x.Close()
		for b.Loop() {
			x.Entries()
		}
	})
}

// BenchmarkChange measures replacing a key and the call after it.
func BenchmarkChange(b *testing.B) {
	benchmark(b, func(b *testing.B, dir string) {
		x, err := Open([]string{dir}, nil)
		must(b, err)
		defer x.Close()
		keys := []testKey{newKey(b), newKey(b)}
		for i := 0; b.Loop(); i++ {
			must(b, keyfile.Replace(dir+"/id00000.tpm", keys[i%2].pem, 0o600))
			x.Entries()
		}
	})
}
