package main

import (
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/keydir"
)

// keyOption is the value of an option that is for one key of the agent.
type keyOption[T any] struct {
	key   string // as it was given
	value T

	// One of these is what it is compared with.
	fingerprint, path, base string
}

// parseKeyOption reads the key of an option: a fingerprint, the path of a key
// file, or its name in its directory, with .tpm or without, as list shows it.
// The key need not be there yet.
func parseKeyOption[T any](key string, value T) (o keyOption[T], err error) {
	o = keyOption[T]{key: key, value: value}
	switch hash, fingerprint := strings.CutPrefix(key, "SHA256:"); {
	case key == "":
		return o, errors.New("the key is missing before the =")
	case fingerprint:
		o.fingerprint = "SHA256:" + strings.TrimRight(hash, "=")
	case strings.ContainsRune(key, filepath.Separator):
		o.path, err = filepath.Abs(key)
	default:
		o.base = key
	}
	return o, err
}

// matches says whether the option is for the key in the file of that name.
func (o keyOption[T]) matches(file, fingerprint string) bool {
	switch {
	case o.fingerprint != "":
		return o.fingerprint == fingerprint
	case o.path != "":
		return o.path == filepath.Clean(file)
	}
	base := filepath.Base(file)
	return file != "" && (o.base == base || o.base+".tpm" == base)
}

// rank orders options for the same key: who names it more exactly is right.
func (o keyOption[T]) rank() int {
	switch {
	case o.fingerprint != "":
		return 0
	case o.path != "":
		return 1
	}
	return 2
}

// keyOptions are all those of one option of serve.
type keyOptions[T any] []keyOption[T]

// add refuses a key that was named before.
func (s *keyOptions[T]) add(o keyOption[T]) error {
	same := func(e keyOption[T]) bool {
		return e.fingerprint == o.fingerprint && e.path == o.path && e.base == o.base
	}
	if slices.ContainsFunc(*s, same) {
		return errors.New("it is given twice for " + plain(o.key))
	}
	*s = append(*s, o)
	slices.SortStableFunc(*s, func(a, b keyOption[T]) int { return a.rank() - b.rank() })
	return nil
}

// find is the option for a key.
func (s keyOptions[T]) find(file, fingerprint string) (value T, ok bool) {
	for _, o := range s {
		if o.matches(file, fingerprint) {
			return o.value, true
		}
	}
	return value, false
}

// logUnmatched names the keys that are in no directory. They may come later, or
// be added, so that is no error; but a name that was mistyped should be seen.
func (s keyOptions[T]) logUnmatched(log *slog.Logger, option string, entries []*keydir.Entry) {
	for _, o := range s {
		if !slices.ContainsFunc(entries, func(e *keydir.Entry) bool { return o.matches(e.Path, ssh.FingerprintSHA256(e.Public)) }) {
			log.Warn("an option is for a key that is not there now", "option", option, "key", o.key)
		}
	}
}
