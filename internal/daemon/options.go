package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/keydir"
	"github.com/tpm-agent/tpm-agent/internal/pinsource"
	"github.com/tpm-agent/tpm-agent/internal/softkey"
	"github.com/tpm-agent/tpm-agent/internal/term"
	"github.com/tpm-agent/tpm-agent/internal/upstream"
)

// keyOption is the value of an option about one key of the agent.
type keyOption[T any] struct {
	key   string // as it was given
	value T

	// One of these is what it is compared with, the more exact ones first.
	by   int // which of them, from 0
	want string
}

const (
	byFingerprint = iota
	byPath
	byBase
)

// parseKeyOption reads the key of an option: a fingerprint, the path of a key
// file, or its name in its directory, with .tpm or without, as list shows it.
// The key need not be there yet.
func parseKeyOption[T any](key string, value T) (o keyOption[T], err error) {
	o = keyOption[T]{key: key, value: value, by: byBase, want: key}
	switch hash, fingerprint := strings.CutPrefix(key, "SHA256:"); {
	case key == "":
		return o, errors.New("the key is missing before the =")
	case fingerprint:
		o.by, o.want = byFingerprint, "SHA256:"+strings.TrimRight(hash, "=")
	case strings.ContainsRune(key, filepath.Separator):
		o.by = byPath
		o.want, err = filepath.Abs(key)
	}
	return o, err
}

// matches reports whether the option is about the key in the file of that name.
func (o keyOption[T]) matches(file, fingerprint string) bool {
	switch base := filepath.Base(file); o.by {
	case byFingerprint:
		return o.want == fingerprint
	case byPath:
		return o.want == filepath.Clean(file)
	default:
		return file != "" && (o.want == base || o.want+".tpm" == base)
	}
}

// keyOptions are all values of one option of serve. The more exact ones come first.
type keyOptions[T any] []keyOption[T]

// add refuses a key that was named already.
func (s *keyOptions[T]) add(o keyOption[T]) error {
	if slices.ContainsFunc(*s, func(e keyOption[T]) bool { return e.by == o.by && e.want == o.want }) {
		return errors.New("it is given twice for " + term.Plain(o.key))
	}
	*s = append(*s, o)
	slices.SortStableFunc(*s, func(a, b keyOption[T]) int { return a.by - b.by })
	return nil
}

// find returns the option for a key.
func (s keyOptions[T]) find(file, fingerprint string) (value T, ok bool) {
	for _, o := range s {
		if o.matches(file, fingerprint) {
			return o.value, true
		}
	}
	return value, false
}

// logUnmatched names the keys that are in no directory. They may come later, or be
// added, so that is no error; but a mistyped name should be seen.
func (s keyOptions[T]) logUnmatched(log *slog.Logger, option string, entries []*keydir.Entry) {
	for _, o := range s {
		if !slices.ContainsFunc(entries, func(e *keydir.Entry) bool { return o.matches(e.Path, ssh.FingerprintSHA256(e.Public)) }) {
			log.Warn("an option is for a key that is not there now", "option", option, "key", o.key)
		}
	}
}

// pinLives holds how long PINs are remembered: --pin-ttl.
type pinLives struct {
	keys keyOptions[time.Duration]
	rest time.Duration // of all other keys; 0: not at all
}

// parsePINLives reads the values of --pin-ttl: [KEY=]TTL.
func parsePINLives(values []string) (l pinLives, err error) {
	for _, value := range values {
		if err := l.add(value); err != nil {
			return l, term.Usage("--pin-ttl %s: %w", term.Plain(value), err)
		}
	}
	return l, nil
}

func (l *pinLives) add(value string) error {
	i := strings.LastIndexByte(value, '=') // no time has one, but a path may
	life, err := term.ParsePINLife(value[i+1:], i >= 0)
	switch {
	case err != nil:
		return err
	case i < 0 && l.rest != 0:
		return errors.New("it is given twice for all keys")
	case i < 0:
		l.rest = life
		return nil
	}
	o, err := parseKeyOption(value[:i], life)
	if err != nil {
		return err
	}
	return l.keys.add(o)
}

// of returns the life of the PIN of one key.
func (l pinLives) of(file, fingerprint string) time.Duration {
	if life, ok := l.keys.find(file, fingerprint); ok {
		return life
	}
	return l.rest
}

// givenPINs are PINs that are not asked for: --pin-from.
type givenPINs struct{ keys keyOptions[*givenPIN] }

// A givenPIN is read from its file when it is needed. What came through a
// descriptor is kept.
type givenPIN struct {
	source *pinsource.Source
	held   *softkey.Secret // nil: of a file
}

// parseGivenPINs reads the values of --pin-from: KEY=SOURCE.
func parseGivenPINs(sys *term.System, values []string) (g givenPINs, err error) {
	for _, value := range values {
		if err := g.add(sys, value); err != nil {
			return g, err
		}
	}
	return g, nil
}

func (g *givenPINs) add(sys *term.System, value string) error {
	// Key and source may have a path in them, with any characters, so the source
	// begins where the first of its kinds is named.
	at := len(value)
	for _, kind := range []string{"=fd:", "=file:", "=credential:"} {
		if i := strings.Index(value, kind); i >= 0 {
			at = min(at, i)
		}
	}
	if at == len(value) {
		return term.Hint(term.Usage("--pin-from %s: it is not KEY=SOURCE", term.Plain(value)), "SOURCE is %s", pinsource.Forms)
	}
	source, err := pinsource.Parse(sys, value[at+1:])
	if err != nil {
		return fmt.Errorf("--pin-from %w", err)
	}
	o, err := parseKeyOption(value[:at], &givenPIN{source: source})
	if err == nil {
		err = g.keys.add(o)
	}
	if err == nil && source.Once() && g.descriptors(source.FD) > 1 {
		err = errors.New("a descriptor can be read once only")
	}
	if err != nil {
		return term.Usage("--pin-from %s: %w", term.Plain(value), err)
	}
	return nil
}

// descriptors counts the PINs that come through this descriptor, or any.
func (g *givenPINs) descriptors(fd int) (n int) {
	for _, o := range g.keys {
		if from := o.value.source.FD; from == fd || fd < 0 && from >= 0 {
			n++
		}
	}
	return n
}

// withoutDescriptors refuses what an agent in the background cannot have.
func (g *givenPINs) withoutDescriptors() error {
	if g.descriptors(-1) > 0 {
		return term.Hint(term.Usage("--pin-from fd:N cannot be used with --fork, which passes no descriptors on"), "file:PATH or credential:NAME can be")
	}
	return nil
}

// hold reads the descriptors, which cannot be read later. Call it when other
// processes cannot read this one's memory.
func (g givenPINs) hold(ctx context.Context) error {
	for _, o := range g.keys {
		if !o.value.source.Once() {
			continue
		}
		pin, _, err := o.value.source.Read(ctx)
		if err == nil {
			o.value.held, err = softkey.NewSecret(pin)
		}
		clear(pin)
		if err != nil {
			g.wipe()
			return fmt.Errorf("--pin-from %s: %w", term.Plain(o.key), err)
		}
	}
	return nil
}

// wipe overwrites what was held.
func (g givenPINs) wipe() {
	for _, o := range g.keys {
		if o.value.held != nil {
			o.value.held.Wipe()
		}
	}
}

// of returns the PIN of a key, if one is given: see agent.Config.GivenPIN.
func (g givenPINs) of(file, fingerprint string) (pin []byte, version string, err error) {
	given, ok := g.keys.find(file, fingerprint)
	switch {
	case !ok:
		return nil, "", nil
	case given.held == nil:
		return given.source.Read(context.Background()) // a regular file
	}
	err = given.held.Use(func(b []byte) error { pin = bytes.Clone(b); return nil })
	return pin, given.source.Spec, err
}

// maxSocketPath is the longest path that a unix socket can have, in octets.
const maxSocketPath = 107

// readUpstreams returns the agents at some sockets. A socket need not be there yet.
func readUpstreams(paths []string) ([]upstream.Agent, error) {
	var list []upstream.Agent
	for _, path := range paths {
		switch {
		case path == "":
			return nil, term.Usage("--upstream: the path is empty")
		case strings.HasPrefix(path, "~"):
			return nil, term.Hint(term.Usage("--upstream %s: the shell has not replaced the ~", path), "write the whole path, or ./%s", path)
		}
		path, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		if len(path) > maxSocketPath {
			return nil, term.Usage("--upstream %s: the path is %d bytes long, a socket's path can have %d at most", path, len(path), maxSocketPath)
		}
		if !slices.ContainsFunc(list, func(u upstream.Agent) bool { return u.Name == path }) {
			list = append(list, upstream.Agent{Name: path, Dial: func(ctx context.Context) (net.Conn, error) {
				var dialer net.Dialer
				return dialer.DialContext(ctx, "unix", path)
			}})
		}
	}
	return list, nil
}

// refuseOwn refuses an agent that would be its own upstream: each of its requests
// would come back to it for ever.
func refuseOwn(list []upstream.Agent, own string) error {
	own, err := filepath.Abs(own)
	if err != nil {
		return err
	}
	ours, err := os.Stat(own)
	for _, u := range list {
		theirs, theirErr := os.Stat(u.Name)
		if u.Name == own || err == nil && theirErr == nil && os.SameFile(ours, theirs) {
			return term.Usage("--upstream %s: that is the socket of this agent itself", u.Name)
		}
	}
	return nil
}
