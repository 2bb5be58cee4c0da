package consent

import (
	"context"
	"crypto"
	"errors"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/restrict"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeKey is a key with a PIN, or without one. Its signature is "signed".
type fakeKey struct {
	pin      string
	required bool
	left     int
	tried    int
	before   func() // called by each Sign; may be nil
}

func (k *fakeKey) AuthRequired() bool { return k.required }

func (k *fakeKey) Sign(_ context.Context, auth, _ []byte, _ crypto.SignerOpts) ([]byte, error) {
	if k.before != nil {
		k.before()
	}
	k.tried++
	if string(auth) != k.pin {
		k.left--
		return nil, &WrongPINError{k.left}
	}
	return []byte("signed"), nil
}

// testOwner is an Owner without a Prompter. It has one key.
type testOwner struct {
	*Owner
	id      *Identity
	clock   *sshtest.Clock
	offered bool
}

func newTestOwner(key *fakeKey) *testOwner {
	o := &testOwner{
		id:    &Identity{Key: key, KeyBlob: "blob", Name: "k.tpm", Fingerprint: "SHA256:x"},
		clock: sshtest.NewClock(), offered: true,
	}
	is := func(string, Key) bool { return o.offered }
	o.Owner = NewOwner(Config{
		Clock: o.clock, Log: slog.New(slog.DiscardHandler),
		Present: func() (offered, exists func(string, Key) bool) { return is, is },
	})
	return o
}

func (o *testOwner) request() Request {
	return Request{
		Identity: o.id,
		Again:    func() (*Identity, *refusal.Error) { return o.id, nil },
		Use:      func() ask.Use { return ask.Use{} },
		Origin:   func() string { return "" },
		Hash:     crypto.SHA256,
	}
}

func (o *testOwner) give(t *testing.T, pin string, ttl time.Duration) (time.Duration, error) {
	t.Helper()
	return o.Give(t.Context(), o.request(), []byte(pin), ttl)
}

// TestGive checks for how long a PIN is remembered that is given before it is
// needed, and when it is not.
func TestGive(t *testing.T) {
	t.Parallel()
	minute := time.Minute
	for name, test := range map[string]struct {
		key   fakeKey
		life  *time.Duration // the key's
		pin   string
		ttl   time.Duration
		want  time.Duration
		fails error // nil: any if want is 0
		tried int
	}{
		"forever":         {fakeKey{pin: "1", required: true}, nil, "1", 0, restrict.Forever, nil, 1},
		"its time":        {fakeKey{pin: "1", required: true}, nil, "1", time.Hour, time.Hour, nil, 1},
		"the key's life":  {fakeKey{pin: "1", required: true}, &minute, "1", 0, time.Minute, nil, 1},
		"wrong":           {fakeKey{pin: "1", required: true}, nil, "2", 0, 0, nil, 1},
		"empty":           {fakeKey{pin: "1", required: true}, nil, "", 0, 0, nil, 0},
		"no PIN":          {fakeKey{}, nil, "1", 0, 0, ErrNoPIN, 1},
		"hint was wrong":  {fakeKey{pin: "1"}, nil, "1", 0, restrict.Forever, nil, 2},
		"a negative time": {fakeKey{pin: "1", required: true}, nil, "1", -1, 0, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newTestOwner(&test.key)
			o.id.PINLife = test.life
			life, err := o.give(t, test.pin, test.ttl)
			if life != test.want || (err == nil) != (test.want > 0) || test.fails != nil && !errors.Is(err, test.fails) {
				t.Errorf("got %v, %v", life, err)
			}
			if left := o.PINLeft(o.id); left != test.want {
				t.Errorf("remembered for %v", left)
			}
			if test.key.tried != test.tried {
				t.Errorf("tried %d values, want %d", test.key.tried, test.tried)
			}
		})
	}
}

// TestGiveTwice checks that a key without a PIN is asked only once whether it has
// one, and that a second PIN replaces the first.
func TestGiveTwice(t *testing.T) {
	t.Parallel()
	none := &fakeKey{}
	o := newTestOwner(none)
	for range 2 {
		if _, err := o.give(t, "1", 0); !errors.Is(err, ErrNoPIN) {
			t.Error(err)
		}
	}
	if none.tried != 1 || o.Needed(o.id) {
		t.Errorf("tried %d values", none.tried)
	}
	key := &fakeKey{pin: "1", required: true}
	o = newTestOwner(key)
	o.give(t, "1", time.Hour)
	first := o.store.pin(o.id)
	o.give(t, "1", time.Minute)
	if err := first.Use(func([]byte) error { return nil }); err == nil || o.PINLeft(o.id) != time.Minute {
		t.Errorf("the first PIN is there: %t; the second lives for %v", err == nil, o.PINLeft(o.id))
	}
}

// TestGiveMeanwhile checks that a PIN is not remembered if all PINs were
// forgotten, or the key was removed, while the key tried it.
func TestGiveMeanwhile(t *testing.T) {
	t.Parallel()
	for name, event := range map[string]func(*testOwner){
		"forgotten": func(o *testOwner) { o.Forget() },
		"removed":   func(o *testOwner) { o.offered = false },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := &fakeKey{pin: "1", required: true}
			o := newTestOwner(key)
			key.before = func() { event(o) }
			if life, err := o.give(t, "1", 0); err == nil || life != 0 {
				t.Errorf("got %v, %v", life, err)
			}
			if left := o.PINLeft(o.id); left != 0 || o.clock.Pending() > 0 {
				t.Errorf("remembered for %v, %d alarms", left, o.clock.Pending())
			}
		})
	}
}

// TestStatus checks what is told about a PIN before and after the key was used.
func TestStatus(t *testing.T) {
	t.Parallel()
	key := &fakeKey{pin: "1", required: true, left: 5}
	o := newTestOwner(key)
	unknown := Lockout{Tries: triesUnknown}
	if s := o.Status(t.Context(), o.id); s != (Status{NeedsPIN: true, Lockout: unknown}) || !o.Needed(o.id) {
		t.Errorf("at first: %+v", s)
	}
	o.give(t, "2", 0)
	if s := o.Status(t.Context(), o.id); s.Tries != 4 {
		t.Errorf("after a wrong PIN: %+v", s)
	}
	o.give(t, "1", time.Minute)
	if s := o.Status(t.Context(), o.id); s.Remembered != time.Minute || s.Tries != 4 {
		t.Errorf("after the right PIN: %+v", s)
	}
	o.clock.Forward(time.Minute)
	if s := o.Status(t.Context(), o.id); s.Remembered != 0 {
		t.Errorf("after its time: %+v", s)
	}
}

// TestTriesLeft checks how wrong PINs are counted where a key does not say how
// many are left.
func TestTriesLeft(t *testing.T) {
	t.Parallel()
	b := newBook()
	for i, step := range []struct {
		err  error
		want int
	}{
		{&WrongPINError{-1}, triesUnknown},
		{nil, triesUnknown},
		{&WrongPINError{3}, 3},
		{&WrongPINError{-1}, 2},
		{errors.New("broken"), 2},
		{nil, 2},
		{&WrongPINError{-1}, 1},
		{&WrongPINError{-1}, 1}, // an estimate alone never locks a key out
		{&WrongPINError{0}, 0},
		{nil, triesUnknown},
	} {
		if b.judge(step.err); b.tries != step.want {
			t.Errorf("after step %d (%v): %d tries left, want %d", i, step.err, b.tries, step.want)
		}
	}
}

// TestConfirmWithoutPrompter checks that a key that needs consent does not sign
// if the owner cannot be asked.
func TestConfirmWithoutPrompter(t *testing.T) {
	t.Parallel()
	key := &fakeKey{}
	o := newTestOwner(key)
	r := o.request()
	r.Confirm = true
	_, err := o.Sign(t.Context(), r)
	var refused *refusal.Error
	if !errors.As(err, &refused) || refused.Cause != refusal.NoPrompt || key.tried > 0 {
		t.Errorf("got %v, tried %d values", err, key.tried)
	}
}

// TestLockDelay checks that each wrong password delays the next try by more, up
// to ten seconds, and that the right one ends that.
func TestLockDelay(t *testing.T) {
	t.Parallel()
	var l lock
	for range 2 {
		l.begin()
		for n := 1; n <= 120; n++ {
			now := time.Duration(n) * time.Hour
			want := min(time.Duration(n)*lockDelay, maxLockDelay)
			if wait := l.wrong(now) - now; wait != want || l.notBefore != now+want {
				t.Fatalf("wrong password %d delays the next by %v, want %v", n, wait, want)
			}
		}
	}
}

// TestErrorTexts checks what users read about wrong PINs and lockouts.
func TestErrorTexts(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"wrong PIN": &WrongPINError{-1},
		"wrong PIN (1 try left before the TPM locks)":                      &WrongPINError{1},
		"wrong PIN (5 tries left before the TPM locks)":                    &WrongPINError{5},
		"locked out after too many wrong PINs":                             &LockedOutError{},
		"locked out after too many wrong PINs, for 10m0s at most":          &LockedOutError{Wait: 10 * time.Minute},
		"locked out after too many wrong PINs: the TPM gives one try back": refusal.New(refusal.Lockout, errors.New("the TPM gives one try back")),
	} {
		if got := err.Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
